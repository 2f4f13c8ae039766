/* Drawing on canvas: edges in parts, so that no frame takes long, and nodes with the edges of the chosen one above. */
import type { Colours } from "../shared/colours";
import { Pace } from "../shared/pace";
import { penOfNames, seen, type Sight } from "../shared/zoom";
import { isBracket, isInner, type Data } from "./data";
import { curve, type Curve, type Edges, type Nodes } from "./scene";

/* So many edges outside of what is seen take as long as one that is drawn. */
const UNSEEN = 8;
/* Edges of one stroke. */
const BATCH = 24;
/* Up to so many edges, keys and values are dashed. */
export const DASHED = 600;
export const DASHES = [[], [7, 4], [2, 3], [], []];

export const width = (weight: number) => 0.7 + 3.3 * weight ** 1.5;
export const opacity = (weight: number) => 0.22 + 0.68 * weight;

/* From this scale on nodes have their names. */
const NAMED = 1.35;

type Pen = CanvasRenderingContext2D;

function trace(pen: Pen, path: Curve) {
  pen.moveTo(path[0], path[1]);
  pen.bezierCurveTo(path[2], path[3], path[4], path[5], path[6], path[7]);
}

/* Edges from one to before another, with one stroke for several of nearly the same weight; how many can be seen. */
export function strokeEdges(pen: Pen, data: Data, nodes: Nodes, edges: Edges, from: number, to: number, colours: Colours, dashed: boolean, sight?: Sight): number {
  let style = -1;
  let [held, drawn] = [0, 0];
  const thin = 1 / Math.sqrt(Math.max(1, sight?.scale ?? 1));
  for (let i = from; i < to; i++) {
    const path = curve(nodes, data, edges.source[i]!, edges.target[i]!, edges.kind[i]!);
    if (thin < 1 && !seen(sight!, Math.min(path[0], path[2], path[4], path[6]), Math.min(path[1], path[3], path[5], path[7]), Math.max(path[0], path[2], path[4], path[6]), Math.max(path[1], path[3], path[5], path[7]))) continue;
    drawn++;
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
      pen.lineWidth = width(weight / 32) * thin;
      pen.globalAlpha = opacity(weight / 32);
      if (dashed) pen.setLineDash(DASHES[kind]!);
    }
    trace(pen, path);
    held++;
  }
  if (held) pen.stroke();
  pen.globalAlpha = 1;
  if (dashed) pen.setLineDash([]);
  return drawn;
}

/* Keeps a canvas at the edges that are wanted. The largest come first, the others below them, a part in each frame. */
export class EdgePainter {
  private drawn = 0;
  private wanted = 0;
  private pending = 0;
  private pace = new Pace();
  private now: { edges: Edges; nodes: Nodes; colours: Colours; data: Data; sight: Sight; dense: number } | null = null;

  constructor(private canvas: HTMLCanvasElement) {}

  show(data: Data, nodes: Nodes, edges: Edges, count: number, colours: Colours, sight: Sight, dense: number) {
    const before = this.now;
    const same = before && before.edges === edges && before.nodes === nodes && before.colours === colours && before.sight === sight && before.dense === dense;
    const dashes = (most: number) => most <= DASHED;
    this.now = { data, nodes, edges, colours, sight, dense };
    if (!same || count < this.drawn || dashes(count) !== dashes(this.wanted)) this.clear();
    this.wanted = count;
    this.part();
  }

  /* Whether all that is wanted is there. */
  get done() {
    return this.drawn >= this.wanted;
  }

  private clear() {
    fit(this.canvas, this.now!.sight, this.now!.dense);
    this.drawn = 0;
  }

  private part = () => {
    cancelAnimationFrame(this.pending);
    const { data, nodes, edges, colours, sight } = this.now!;
    const pen = this.canvas.getContext("2d")!;
    pen.globalCompositeOperation = "destination-over";
    for (let left = this.pace.take(); left >= 1 && this.drawn < this.wanted; ) {
      const next = Math.min(this.wanted, this.drawn + Math.ceil(left));
      const drawn = strokeEdges(pen, data, nodes, edges, this.drawn, next, colours, this.wanted <= DASHED, sight);
      left -= drawn + (next - this.drawn - drawn) / UNSEEN;
      this.drawn = next;
    }
    if (this.drawn < this.wanted) this.pending = requestAnimationFrame(this.part);
  };
}

/* Size a canvas to what is seen of the figure and clear it; its units are those of the figure. */
export function fit(canvas: HTMLCanvasElement, sight: Sight, dense: number) {
  const scale = sight.css * dense;
  const [wide, high] = [Math.round(sight.wide * scale), Math.round(sight.high * scale)];
  const pen = canvas.getContext("2d")!;
  if (canvas.width !== wide || canvas.height !== high) {
    canvas.width = wide;
    canvas.height = high;
  }
  pen.setTransform(1, 0, 0, 1, 0, 0);
  pen.clearRect(0, 0, wide, high);
  pen.setTransform(scale, 0, 0, scale, -sight.x * scale, -sight.y * scale);
}

/* Nodes that are drawn, `strong` ones in full. */
export function paintNodes(pen: Pen, data: Data, nodes: Nodes, colours: Colours, drawn: Iterable<number>, strong = -1, sight?: Sight) {
  for (const i of drawn) {
    if (sight && !seen(sight, nodes.x[i]! - 100, nodes.y[i]! - 20, nodes.x[i]! + 100, nodes.y[i]! + 20)) continue;
    const name = nodes.names[i]!;
    const box = nodes.boxes.get(i);
    if (box !== undefined || data.grid.ends[name]) pill(pen, nodes, i, box ?? 3.5 * name.length + 11, colours);
    else if (isBracket(name)) bracket(pen, data, nodes, i, colours);
    else circle(pen, nodes, i, colours, strong === i);
  }
}

/* Names below nodes that have none inside, of a part of the grid and where there is room. */
export function paintNames(pen: Pen, data: Data, nodes: Nodes, colours: Colours, drawn: Iterable<number>, sight: Sight) {
  if (sight.scale < NAMED) return;
  const letter = penOfNames(pen, sight, colours);
  for (const i of drawn) {
    const [name, x, y] = [nodes.names[i]!, nodes.x[i]!, nodes.y[i]! + nodes.half[i]! + 2 / sight.css];
    const room = (isInner(name) ? nodes.innerCell : data.grid.cell[0]) * sight.css;
    if (nodes.boxes.has(i) || data.grid.ends[name] || isBracket(name) || room < 0.58 * letter * name.length || !seen(sight, x - 40, y - 20, x + 40, y)) continue;
    pen.strokeText(name, x, y);
    pen.fillText(name, x, y);
  }
}

export function paintIdle(pen: Pen, data: Data, nodes: Nodes, colours: Colours, thin = 1) {
  for (const [x, y] of idle(data, nodes)) dot(pen, x, y, 1.5 / thin, colours.faint);
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
