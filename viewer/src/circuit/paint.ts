/* Drawing on canvas: edges in parts, so that no frame takes long, and nodes with the edges of the chosen one above. */
import type { Colours } from "../shared/colours";
import { isBracket, type Data } from "./data";
import { curve, type Curve, type Edges, type Nodes } from "./scene";

/* Edges of the first frame; how many the others take follows from how long frames take, in milliseconds. */
const QUOTA = 400;
const [FEWEST, MOST] = [60, 1500];
const [FAST, SLOW] = [20, 30];
/* Edges of one stroke. */
const BATCH = 24;
/* Up to so many edges, keys and values are dashed. */
export const DASHED = 600;
export const DASHES = [[], [7, 4], [2, 3], [], []];

export const width = (weight: number) => 0.7 + 3.3 * weight ** 1.5;
export const opacity = (weight: number) => 0.22 + 0.68 * weight;

type Pen = CanvasRenderingContext2D;

function trace(pen: Pen, path: Curve) {
  pen.moveTo(path[0], path[1]);
  pen.bezierCurveTo(path[2], path[3], path[4], path[5], path[6], path[7]);
}

/* Edges from one to before another, with one stroke for several of nearly the same weight. */
export function strokeEdges(pen: Pen, data: Data, nodes: Nodes, edges: Edges, from: number, to: number, colours: Colours, dashed: boolean) {
  let style = -1;
  let held = 0;
  for (let i = from; i < to; i++) {
    const weight = Math.round(edges.weight[i]! * 32);
    const kind = dashed ? edges.kind[i]! : 0;
    const wanted = (weight * 5 + kind) * 2 + (edges.score[i]! > 0 ? 1 : 0);
    if (wanted !== style || held >= BATCH) {
      if (held) pen.stroke();
      pen.beginPath();
      held = 0;
    }
    if (wanted !== style) {
      style = wanted;
      pen.strokeStyle = edges.score[i]! > 0 ? colours.hurts : colours.helps;
      pen.lineWidth = width(weight / 32);
      pen.globalAlpha = opacity(weight / 32);
      if (dashed) pen.setLineDash(DASHES[kind]!);
    }
    trace(pen, curve(nodes, data, edges.source[i]!, edges.target[i]!, edges.kind[i]!));
    held++;
  }
  if (held) pen.stroke();
  pen.globalAlpha = 1;
  if (dashed) pen.setLineDash([]);
}

/* Keeps a canvas at the edges that are wanted. The largest come first, the others below them, a part in each frame. */
export class EdgePainter {
  private drawn = 0;
  private wanted = 0;
  private pending = 0;
  private quota = QUOTA;
  private last = 0;
  private now: { edges: Edges; nodes: Nodes; colours: Colours; data: Data; scale: number } | null = null;

  constructor(private canvas: HTMLCanvasElement) {}

  show(data: Data, nodes: Nodes, edges: Edges, count: number, colours: Colours, scale: number) {
    const before = this.now;
    const same = before && before.edges === edges && before.nodes === nodes && before.colours === colours && before.scale === scale;
    const dashes = (most: number) => most <= DASHED;
    this.now = { data, nodes, edges, colours, scale };
    if (!same || count < this.drawn || dashes(count) !== dashes(this.wanted)) this.clear();
    this.wanted = count;
    this.part();
  }

  /* Whether all that is wanted is there. */
  get done() {
    return this.drawn >= this.wanted;
  }

  private clear() {
    const { nodes, scale } = this.now!;
    fit(this.canvas, nodes, scale);
    this.drawn = 0;
  }

  private part = () => {
    cancelAnimationFrame(this.pending);
    const { data, nodes, edges, colours } = this.now!;
    const pen = this.canvas.getContext("2d")!;
    const now = performance.now();
    const took = now - this.last; // strokes are drawn after the script, so that only the next frame tells
    if (took > SLOW && took < 2000) this.quota = Math.max(FEWEST, this.quota / 2);
    else if (took < FAST) this.quota = Math.min(MOST, this.quota * 1.1);
    this.last = now;
    pen.globalCompositeOperation = "destination-over";
    const next = Math.min(this.wanted, this.drawn + Math.round(this.quota));
    strokeEdges(pen, data, nodes, edges, this.drawn, next, colours, this.wanted <= DASHED);
    this.drawn = next;
    if (this.drawn < this.wanted) this.pending = requestAnimationFrame(this.part);
  };
}

/* Size a canvas to the figure and clear it; its units are those of the figure. */
export function fit(canvas: HTMLCanvasElement, nodes: Nodes, scale: number) {
  const [wide, high] = [Math.round(nodes.width * scale), Math.round(nodes.height * scale)];
  const pen = canvas.getContext("2d")!;
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, wide, high);
  pen.setTransform(scale, 0, 0, scale, 0, 0);
}

/* Nodes that are drawn, `strong` ones in full. */
export function paintNodes(pen: Pen, data: Data, nodes: Nodes, colours: Colours, drawn: Iterable<number>, strong = -1) {
  for (const i of drawn) {
    const name = nodes.names[i]!;
    const box = nodes.boxes.get(i);
    if (box !== undefined || data.grid.ends[name]) pill(pen, nodes, i, box ?? 3.5 * name.length + 11, colours);
    else if (isBracket(name)) bracket(pen, data, nodes, i, colours);
    else circle(pen, nodes, i, colours, strong === i);
  }
}

export function paintIdle(pen: Pen, data: Data, nodes: Nodes, colours: Colours) {
  for (const [x, y] of idle(data, nodes)) dot(pen, x, y, 1.5, colours.faint);
}

/* Heads and MLPs outside of the circuit, or inside of a group. */
export function* idle(data: Data, nodes: Nodes): Generator<[number, number]> {
  const { grid } = data;
  const drawn = new Set<string>();
  nodes.names.forEach((name, i) => nodes.live[i] && nodes.shownAs[i] === i && drawn.add(name));
  for (let layer = 0; layer < grid.rows.length; layer++) {
    for (let head = 0; head < grid.columns.length; head++)
      if (!drawn.has(`a${layer}.h${head}`)) yield [grid.columns[head]! + nodes.offset, grid.rows[layer]!];
    if (grid.mlp && !drawn.has(`m${layer}`)) yield [grid.mlp[0] + nodes.offset, grid.rows[layer]! - grid.mlp[1]];
  }
}

function dot(pen: Pen, x: number, y: number, radius: number, colour: string) {
  pen.fillStyle = colour;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.fill();
}

function circle(pen: Pen, nodes: Nodes, i: number, colours: Colours, plain: boolean) {
  const [x, y, radius] = [nodes.x[i]!, nodes.y[i]!, nodes.half[i]!];
  dot(pen, x, y, radius + 1, colours.panel);
  const before = pen.globalAlpha;
  if (!plain) pen.globalAlpha = 0.35 + 0.65 * nodes.share[i]!;
  dot(pen, x, y, radius, colours.ink);
  pen.globalAlpha = before;
}

function bracket(pen: Pen, data: Data, nodes: Nodes, i: number, colours: Colours) {
  const [left, right] = data.grid.brackets[Number(nodes.names[i]!.split("kv")[1])]!;
  const [half, x, y] = [(right - left) / 2, nodes.x[i]!, nodes.y[i]!];
  pen.strokeStyle = colours.ink;
  pen.lineWidth = 1 + 1.6 * nodes.share[i]!;
  pen.beginPath();
  pen.moveTo(x - half, y - 3);
  pen.lineTo(x - half, y);
  pen.lineTo(x + half, y);
  pen.lineTo(x + half, y - 3);
  pen.stroke();
}

function pill(pen: Pen, nodes: Nodes, i: number, half: number, colours: Colours) {
  const [x, y, high] = [nodes.x[i]!, nodes.y[i]!, nodes.half[i]!];
  pen.fillStyle = colours.panel;
  pen.strokeStyle = nodes.live[i] ? colours.ink : colours.faint;
  pen.lineWidth = 1.2;
  pen.beginPath();
  pen.roundRect(x - half, y - high, 2 * half, 2 * high, nodes.boxes.has(i) ? 4 : high);
  pen.fill();
  pen.stroke();
  pen.fillStyle = colours.ink;
  pen.font = "11.5px ui-sans-serif, system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(clipped(nodes.names[i]!), x, y + 0.5, 2 * half - 10);
}

export const clipped = (name: string) => (name.length > 28 ? `${name.slice(0, 27)}\u2026` : name);

/* A line around a node. */
export function ring(pen: Pen, data: Data, nodes: Nodes, i: number, colour: string, line = 1.6) {
  const [wide, high] = halfSize(data, nodes, i);
  pen.strokeStyle = colour;
  pen.lineWidth = line;
  pen.beginPath();
  pen.roundRect(nodes.x[i]! - wide - 3, nodes.y[i]! - high - 3, 2 * wide + 6, 2 * high + 6, high + 3);
  pen.stroke();
}

/* Half the width and height of a node. */
export function halfSize(data: Data, nodes: Nodes, i: number): [number, number] {
  const name = nodes.names[i]!;
  const box = nodes.boxes.get(i);
  if (box !== undefined) return [box, nodes.half[i]!];
  if (data.grid.ends[name]) return [3.5 * name.length + 11, nodes.half[i]!];
  if (!isBracket(name)) return [nodes.half[i]!, nodes.half[i]!];
  const [left, right] = data.grid.brackets[Number(name.split("kv")[1])]!;
  return [(right - left) / 2, 3];
}

/* Which nodes are drawn, without those inside others. */
export function drawnNodes(data: Data, nodes: Nodes): number[] {
  const all = nodes.names.map((_, i) => i);
  return all.filter((i) => (nodes.shownAs[i] === undefined || nodes.shownAs[i] === i) && (nodes.live[i] === 1 || data.grid.ends[nodes.names[i]!] !== undefined));
}
