/* The grid: edges on one canvas, nodes on another above it, numbers of layers and heads below both. */
import { useEffect, useLayoutEffect, useMemo, useRef } from "preact/hooks";
import type { Colours } from "../shared/colours";
import { fixed, interval } from "../shared/numbers";
import { hideTip, showTip } from "../shared/page";
import { useZoom, ZoomButtons, type Sight } from "../shared/zoom";
import { describe, KINDS, type Columns, type Data } from "./data";
import { axes } from "./files";
import { EdgeHits, NodeHits } from "./hit";
import { drawnNodes, EdgePainter, fit, paintIdle, paintNames, paintNodes, ring, strokeEdges } from "./paint";
import type { Edges, Nodes } from "./scene";

/* Edges of the chosen node that are drawn over the others, at most. */
const OVERLAY = 120;
const [NARROWEST, WIDEST] = [500, 960];

export type Shown = { edges: Edges; count: number };
export type Near = { node: number; edges: Edges; list: number[]; incoming: number[]; outgoing: number[]; nodes: Set<number> };

type Props = {
  id: string;
  data: Data;
  set: Columns;
  nodes: Nodes;
  shown: Shown;
  colours: Colours;
  label: string;
  near: Near | null;
  current: number;
  /* The node that is kept, or -1. */
  pinned: number;
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
  const frame = useRef<HTMLDivElement>(null);
  const zoom = useZoom(props.id, nodes.width, nodes.height, place, frame, (room) => cssScale(room, nodes.width));
  const { sight } = zoom;
  const dense = Math.min(2, devicePixelRatio);
  const nodeHits = useMemo(() => new NodeHits(data, nodes), [data, nodes]);
  const edgeHits = useMemo(() => new EdgeHits(data, nodes, shown.edges), [data, nodes, shown.edges]);

  useLayoutEffect(() => {
    painter.current ??= new EdgePainter(below.current!);
    painter.current.show(data, nodes, shown.edges, shown.count, colours, sight, dense);
  }, [data, nodes, shown.edges, shown.count, colours, sight, dense]);

  useLayoutEffect(() => {
    const pen = middle.current!.getContext("2d")!;
    const drawn = drawnNodes(data, nodes);
    fit(middle.current!, sight, dense);
    paintIdle(pen, data, nodes, colours, Math.sqrt(Math.max(1, sight.scale)));
    paintNodes(pen, data, nodes, colours, drawn, -1, sight);
    paintNames(pen, data, nodes, colours, drawn, sight);
  }, [data, nodes, colours, sight, dense]);

  useLayoutEffect(() => {
    const pen = above.current!.getContext("2d")!;
    fit(above.current!, sight, dense);
    for (const i of near?.list.slice(0, OVERLAY).reverse() ?? []) strokeEdges(pen, data, nodes, near!.edges, i, i + 1, colours, true, sight);
    const strong = [...(near?.nodes ?? found ?? [])].filter((i) => nodes.live[i]);
    paintNodes(pen, data, nodes, colours, strong, near?.node ?? -1, sight);
    paintNames(pen, data, nodes, colours, strong, sight);
    if (current >= 0 && current < nodes.names.length) ring(pen, data, nodes, current, colours.helps);
    if (near) ring(pen, data, nodes, near.node, colours.ink);
    for (const i of selected) if (i >= 0) ring(pen, data, nodes, i, colours.m2, 2.5);
  }, [data, nodes, colours, sight, dense, near, current, selected, found]);

  useEffect(() => {
    const node = current >= 0 ? current : props.pinned;
    if (node >= 0 && node < nodes.names.length) zoom.reveal(nodes.x[node]!, nodes.y[node]!);
  }, [current, props.pinned, nodes]);
  const { at } = zoom;
  const latest = useRef<PointerEvent | null>(null);
  const coming = useRef(0);
  useEffect(() => () => cancelAnimationFrame(coming.current), []);
  const look = () => {
    const event = latest.current!;
    const node = nodeHits.node(...at(event));
    const edge = node < 0 && !near ? edgeHits.edge(...at(event), shown.count, Math.max(1, sight.scale)) : -1;
    above.current!.style.cursor = node < 0 ? "default" : "pointer";
    props.hover(node);
    if (node >= 0) showTip(`${nodes.names[node]}, strength ${fixed(nodes.strength[node], props.set.decimals)}`, event.clientX, event.clientY);
    else if (edge >= 0) showTip(edgeWords(props, edge), event.clientX, event.clientY);
    else hideTip();
  };

  return (
    <>
      <div ref={place} class="scroll grid">
        <div
          ref={frame}
          class={`layers${near ? " choosing" : found ? " finding" : ""}`}
          style={zoom.style}
          role="application"
          aria-label={props.label}
          tabIndex={0}
          onKeyDown={(event) => {
            if (event.ctrlKey || event.metaKey || event.altKey || zoom.press(event)) return;
            const next = neighbour(data, nodes, current, event.key);
            if (next !== null) props.move(next);
            if (next !== null || props.press(event.key)) event.preventDefault();
          }}
        >
          <svg viewBox={`${sight.x} ${sight.y} ${sight.wide} ${sight.high}`} aria-hidden="true">
            {data.grid.rows.map((y, layer) => (
              <line key={layer} x1={data.grid.left + nodes.offset} x2={nodes.width - data.grid.size[0] + data.grid.right} y1={y} y2={y} stroke="var(--line)" opacity=".55" vector-effect="non-scaling-stroke" />
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
              cancelAnimationFrame(coming.current);
              coming.current = requestAnimationFrame(look);
            }}
            onPointerLeave={() => (cancelAnimationFrame(coming.current), props.hover(-1), hideTip())}
            onClick={(event) => props.click(nodeHits.node(...at(event)), event.shiftKey)}
          />
          <Axes data={data} nodes={nodes} sight={sight} />
        </div>
      </div>
      <ZoomButtons zoom={zoom} />
    </>
  );
}

/* Numbers of layers and heads; of a part of the grid, those of its rows and columns at its edges. */
function Axes({ data, nodes, sight }: { data: Data; nodes: Nodes; sight: Sight }) {
  const part = sight.scale > 1;
  const scale = part ? sight.css : 1; // letters of the whole grow with the figure, those of a part have their size
  const [wide, high] = [sight.wide * scale, sight.high * scale];
  const labels = axes(data, nodes, scale).map(({ x, y, words, anchor }) => {
    const [across, down] = [(x - sight.x) * scale, (y - sight.y) * scale];
    if (!part) return { x: across, y: down, words, anchor, fits: true };
    if (anchor === "end") return { x: 24, y: down + 3, words, anchor, fits: words !== "layer" && words !== "head" && down > 6 && down < high - 30 };
    return { x: across, y: high - 9, words, anchor, fits: across > 38 && across < wide - 12 };
  });
  return (
    <svg class="axes" viewBox={`0 0 ${wide} ${high}`} aria-hidden="true" font-size={part ? 11 : 10.5} fill="var(--muted)">
      {part && <path d={`M0 0H30V${high - 26}H${wide}V${high}H0Z`} fill="var(--panel)" opacity=".88" />}
      {labels.map(
        ({ x, y, words, anchor, fits }) =>
          fits && (
            <text key={`${words} ${anchor}`} x={x} y={y} text-anchor={anchor}>
              {words}
            </text>
          ),
      )}
    </svg>
  );
}

/* Pixels of a unit of the figure, in some room. */
const cssScale = (room: number, width: number) => Math.max(Math.min(room, Math.max(WIDEST, width)), Math.min(NARROWEST, width), 0.62 * width) / width;

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
