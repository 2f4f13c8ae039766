/* The grid: edges on one canvas, nodes on another above it, numbers of layers and heads below both. */
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Colours } from "../shared/colours";
import { fixed, interval } from "../shared/numbers";
import { hideTip, showTip } from "../shared/page";
import { describe, KINDS, type Columns, type Data } from "./data";
import { axes } from "./files";
import { EdgeHits, NodeHits } from "./hit";
import { drawnNodes, EdgePainter, fit, paintIdle, paintNodes, ring, strokeEdges } from "./paint";
import type { Edges, Nodes } from "./scene";

/* Edges of the chosen node that are drawn over the others, at most. */
const OVERLAY = 120;
const [NARROWEST, WIDEST] = [500, 960];

export type Shown = { edges: Edges; count: number };
export type Near = { node: number; edges: Edges; list: number[]; incoming: number[]; outgoing: number[]; nodes: Set<number> };

type Props = {
  data: Data;
  set: Columns;
  nodes: Nodes;
  shown: Shown;
  colours: Colours;
  label: string;
  near: Near | null;
  current: number;
  selected: Set<number>;
  found: Set<number> | null;
  hover: (node: number) => void;
  click: (node: number, select: boolean) => void;
  move: (node: number) => void;
  press: (key: string) => boolean;
};

export function Figure(props: Props) {
  const { data, nodes, shown, colours, near, current, selected, found } = props;
  const place = useRef<HTMLDivElement>(null);
  const below = useRef<HTMLCanvasElement>(null);
  const middle = useRef<HTMLCanvasElement>(null);
  const above = useRef<HTMLCanvasElement>(null);
  const painter = useRef<EdgePainter | null>(null);
  const css = useCssScale(place, nodes.width);
  const dense = css * Math.min(2, devicePixelRatio);
  const nodeHits = useMemo(() => new NodeHits(data, nodes), [data, nodes]);
  const edgeHits = useMemo(() => new EdgeHits(data, nodes, shown.edges), [data, nodes, shown.edges]);

  useLayoutEffect(() => {
    painter.current ??= new EdgePainter(below.current!);
    painter.current.show(data, nodes, shown.edges, shown.count, colours, dense);
  }, [data, nodes, shown.edges, shown.count, colours, dense]);

  useLayoutEffect(() => {
    const pen = middle.current!.getContext("2d")!;
    fit(middle.current!, nodes, dense);
    paintIdle(pen, data, nodes, colours);
    paintNodes(pen, data, nodes, colours, drawnNodes(data, nodes));
  }, [data, nodes, colours, dense]);

  useLayoutEffect(() => {
    const pen = above.current!.getContext("2d")!;
    fit(above.current!, nodes, dense);
    for (const i of near?.list.slice(0, OVERLAY).reverse() ?? []) strokeEdges(pen, data, nodes, near!.edges, i, i + 1, colours, true);
    const strong = [...(near?.nodes ?? found ?? [])].filter((i) => nodes.live[i]);
    paintNodes(pen, data, nodes, colours, strong, near?.node ?? -1);
    if (current >= 0 && current < nodes.names.length) ring(pen, data, nodes, current, colours.helps);
    if (near) ring(pen, data, nodes, near.node, colours.ink);
    for (const i of selected) if (i >= 0) ring(pen, data, nodes, i, colours.m2, 2.5);
  }, [data, nodes, colours, dense, near, current, selected, found]);

  const at = (event: MouseEvent): [number, number] => {
    const box = above.current!.getBoundingClientRect();
    return [(event.clientX - box.left) / css, (event.clientY - box.top) / css];
  };
  const latest = useRef<PointerEvent | null>(null);
  const frame = useRef(0);
  useEffect(() => () => cancelAnimationFrame(frame.current), []);
  const look = () => {
    const event = latest.current!;
    const node = nodeHits.node(...at(event));
    const edge = node < 0 && !near ? edgeHits.edge(...at(event), shown.count) : -1;
    above.current!.style.cursor = node < 0 ? "default" : "pointer";
    props.hover(node);
    if (node >= 0) showTip(`${nodes.names[node]}, strength ${fixed(nodes.strength[node], props.set.decimals)}`, event.clientX, event.clientY);
    else if (edge >= 0) showTip(edgeWords(props, edge), event.clientX, event.clientY);
    else hideTip();
  };

  return (
    <div ref={place} class="scroll grid">
      <div
        class={`layers${near ? " choosing" : found ? " finding" : ""}`}
        style={{ width: `${nodes.width * css}px`, height: `${nodes.height * css}px` }}
        role="application"
        aria-label={props.label}
        tabIndex={0}
        onKeyDown={(event) => {
          if (event.ctrlKey || event.metaKey || event.altKey) return;
          const next = neighbour(data, nodes, current, event.key);
          if (next !== null) props.move(next);
          if (next !== null || props.press(event.key)) event.preventDefault();
        }}
      >
        <svg viewBox={`0 0 ${nodes.width} ${nodes.height}`} aria-hidden="true" font-size="10.5" fill="var(--muted)">
          {data.grid.rows.map((y, layer) => (
            <line key={layer} x1={data.grid.left + nodes.offset} x2={nodes.width - data.grid.size[0] + data.grid.right} y1={y} y2={y} stroke="var(--line)" opacity=".55" />
          ))}
          {axes(data, nodes).map(({ x, y, words, anchor }) => (
            <text key={`${words} ${x} ${y}`} x={x} y={y} text-anchor={anchor}>
              {words}
            </text>
          ))}
        </svg>
        <canvas ref={below} class="edges" aria-hidden="true" />
        <canvas ref={middle} class="nodes" aria-hidden="true" />
        <canvas
          ref={above}
          class="chosen"
          aria-hidden="true"
          onPointerMove={(event) => {
            latest.current = event;
            cancelAnimationFrame(frame.current);
            frame.current = requestAnimationFrame(look);
          }}
          onPointerLeave={() => (cancelAnimationFrame(frame.current), props.hover(-1), hideTip())}
          onClick={(event) => props.click(nodeHits.node(...at(event)), event.shiftKey)}
        />
      </div>
    </div>
  );
}

/* CSS pixels for a unit of the figure. */
function useCssScale(place: { current: HTMLDivElement | null }, width: number): number {
  const [room, setRoom] = useState(WIDEST);
  useLayoutEffect(() => {
    const measure = () => setRoom(place.current!.clientWidth || WIDEST);
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(place.current!);
    return () => observer.disconnect();
  }, []);
  return Math.max(Math.min(room, Math.max(WIDEST, width)), Math.min(NARROWEST, width), 0.62 * width) / width;
}

function edgeWords({ data, set, nodes, shown: { edges } }: Props, i: number): string {
  const first = edges.first[i]!;
  const [from, to] = [nodes.names[edges.source[i]!]!, nodes.names[edges.target[i]!]!];
  const kind = KINDS[edges.kind[i]!];
  if (edges.count[i]! > 1) return `${from} \u2192 ${to} (${kind}) ${edges.count[i]} edges, sum ${fixed(edges.score[i], set.decimals)} ${set.unit}`;
  const also = set.also.map((column, k) => `, ${data.also[k]} ${fixed(column[first], set.decimals)}`).join("");
  const ends = `${data.names[set.from[first]!]} \u2192 ${data.names[set.to[first]!]}`;
  return `${ends} (${kind}) ${fixed(set.score[first], set.decimals)} ${interval(set.low[first], set.high[first], set.decimals)} ${set.unit}${also}`;
}

/* The node that an arrow leads to; with none before, the lowest. Null for other keys, and where there is none. */
function neighbour(data: Data, nodes: Nodes, current: number, key: string): number | null {
  if (!key.startsWith("Arrow")) return null;
  const all = drawnNodes(data, nodes).sort((a, b) => nodes.y[b]! - nodes.y[a]! || nodes.x[a]! - nodes.x[b]!);
  if (!all.includes(current)) return all[0] ?? null;
  if (key === "ArrowRight" || key === "ArrowLeft") return all[all.indexOf(current) + (key === "ArrowRight" ? 1 : -1)] ?? current;
  const up = key === "ArrowUp" ? 1 : -1;
  const [x, y] = [nodes.x[current]!, nodes.y[current]!];
  const beyond = all.filter((i) => (y - nodes.y[i]!) * up > 0.5);
  const nearest = Math.min(...beyond.map((i) => Math.abs(nodes.y[i]! - y)));
  const row = beyond.filter((i) => Math.abs(nodes.y[i]! - y) < nearest + 1);
  return row.sort((a, b) => Math.abs(nodes.x[a]! - x) - Math.abs(nodes.x[b]! - x))[0] ?? current;
}

export const nodeWords = (set: Columns, nodes: Nodes, i: number) =>
  `${nodes.names[i]}, ${nodes.boxes.has(i) ? "a group" : describe(nodes.names[i]!)}, strength ${fixed(nodes.strength[i], set.decimals)}`;
