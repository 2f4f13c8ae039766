/* The drawing of an attribution graph: edges and dots on canvases, names in SVG above them. */
import { memo } from "preact/compat";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { useColours, type Colours } from "../shared/colours";
import { shown as visible } from "../shared/tokens";
import { isUnit, type Graph, type Within } from "./graph";
import { beside, curve, nearest, type Layout } from "./layout";

const AT_ONCE = 600; // edges that are drawn before the page may do something else
const RINGS = ["m1", "m2", "m3", "m4", "m5", "m6"] as const;
export const ring = (group: number) => RINGS[group % RINGS.length]!;
export const hue = (value: number | null) => ((value ?? 0) > 0 ? "helps" : (value ?? 0) < 0 ? "hurts" : "muted");

type Props = {
  graph: Graph;
  places: Layout;
  kept: Within;
  /* The node whose edges are shown, or -1. */
  active: number;
  /* Edges of it. */
  touching: number[];
  pinned: Set<number>;
  groupOf: Map<number, number>;
  found: Set<number> | null;
  point: (node: number, x: number, y: number) => void;
  keep: (node: number, pin: boolean) => void;
  label: string;
};

function prepared(canvas: HTMLCanvasElement, places: Layout): CanvasRenderingContext2D {
  const scale = Math.min(devicePixelRatio || 1, Math.sqrt(2e7 / (places.width * places.height)));
  const [width, height] = [Math.floor(places.width * scale), Math.floor(places.height * scale)];
  const context = canvas.getContext("2d")!;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.reset();
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return context;
}

function stroke(context: CanvasRenderingContext2D, graph: Graph, places: Layout, edge: number, width: number, colours: Colours) {
  const [source, target, weight] = graph.edges[edge]!;
  const [ax, ay, ...rest] = curve(places, source, target);
  context.beginPath();
  context.moveTo(ax, ay);
  context.bezierCurveTo(...rest);
  context.strokeStyle = colours[hue(weight)];
  context.lineWidth = width;
  context.stroke();
}

/* How a node is painted: its colour and that of its outline. */
function paint(props: Pick<Props, "graph" | "groupOf" | "pinned">, i: number): [keyof Colours, keyof Colours] {
  const [node, group] = [props.graph.nodes[i]!, props.groupOf.get(i)];
  const fill = isUnit(node) ? hue(node.effect) : node.kind === "mlp" ? "faint" : "ink";
  return [fill, group !== undefined ? ring(group) : props.pinned.has(i) ? "ink" : "panel"];
}

/* Some nodes, those of one look in one path: thousands of single paths would take a page's time. */
function dots(context: CanvasRenderingContext2D, props: Props, some: Iterable<number>, colours: Colours) {
  for (const [look, nodes] of Map.groupBy(some, (i) => paint(props, i).join(" "))) {
    const [fill, outline] = look.split(" ") as [keyof Colours, keyof Colours];
    context.beginPath();
    for (const i of nodes) outlineOf(context, props, i);
    context.fillStyle = colours[fill];
    context.fill();
    context.lineWidth = outline === "panel" ? 0.8 : 2;
    context.strokeStyle = colours[outline];
    context.stroke();
  }
}

function outlineOf(context: CanvasRenderingContext2D, { graph, places }: Props, i: number) {
  const [x, y, size] = [places.x[i]!, places.y[i]!, places.radius[i]!];
  const { kind } = graph.nodes[i]!;
  if (kind === "mlp") {
    context.moveTo(x, y - size - 1);
    for (const [dx, dy] of [[1, 0], [0, 1], [-1, 0]] as const) context.lineTo(x + dx * (size + 1), y + dy * (size + 1));
    context.closePath();
  } else if (isUnit(graph.nodes[i]!)) {
    context.moveTo(x + size, y);
    context.arc(x, y, size, 0, 2 * Math.PI);
  } else context.rect(x - size, y - size, 2 * size, 2 * size);
}

/* Edges that are kept, strong ones first; weaker ones follow below them, a part in each frame, so that the page stays live. */
function useEdges({ graph, places, kept }: Props, colours: Colours) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useLayoutEffect(() => {
    const context = prepared(canvas.current!, places);
    const largest = kept.influence[kept.ranked[0] ?? 0] || 1;
    let [next, waiting] = [0, 0];
    context.globalCompositeOperation = "destination-over";
    context.globalAlpha = 0.45;
    const more = () => {
      const end = Math.min(kept.ranked.length, next + AT_ONCE);
      for (; next < end; next++) stroke(context, graph, places, kept.ranked[next]!, 0.5 + 2.5 * Math.sqrt(kept.influence[kept.ranked[next]!]! / largest), colours);
      if (next < kept.ranked.length) waiting = requestAnimationFrame(more);
      else canvas.current?.setAttribute("data-drawn", String(next));
    };
    canvas.current!.removeAttribute("data-drawn");
    more();
    return () => cancelAnimationFrame(waiting);
  }, [graph, places, kept, colours]);
  return canvas;
}

/* Nodes that are kept. */
function useDots(props: Props, colours: Colours) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { graph, places, kept, pinned, groupOf } = props;
  useLayoutEffect(() => {
    dots(prepared(canvas.current!, places), props, [...graph.nodes.keys()].filter((i) => kept.nodes[i]), colours);
  }, [graph, places, kept, pinned, groupOf, colours]);
  return canvas;
}

/* One node with its edges and their other ends, above all else. */
function useFront(props: Props, colours: Colours) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { graph, places, active, touching, found, pinned, groupOf } = props;
  useLayoutEffect(() => {
    const context = prepared(canvas.current!, places);
    for (const i of found ?? []) {
      context.beginPath();
      context.arc(places.x[i]!, places.y[i]!, places.radius[i]! + 4, 0, 2 * Math.PI);
      context.strokeStyle = colours.ink;
      context.stroke();
    }
    if (active < 0) return;
    const most = Math.max(...touching.map((i) => Math.abs(graph.edges[i]![2])), 1e-12);
    context.globalAlpha = 0.75;
    for (const i of [...touching].reverse()) stroke(context, graph, places, i, 0.4 + 3 * Math.sqrt(Math.abs(graph.edges[i]![2]) / most), colours);
    context.globalAlpha = 1;
    dots(context, props, new Set([active, ...touching.flatMap((edge) => graph.edges[edge]!.slice(0, 2))]), colours);
    context.beginPath();
    context.arc(places.x[active]!, places.y[active]!, places.radius[active]! + 3, 0, 2 * Math.PI);
    context.lineWidth = 1.6;
    context.strokeStyle = colours.ink;
    context.stroke();
  }, [graph, places, active, touching, found, pinned, groupOf, colours]);
  return canvas;
}

export function Picture(props: Props) {
  const { graph, places, kept, active, label } = props;
  const colours = useColours();
  const [edges, nodes, front] = [useEdges(props, colours), useDots(props, colours), useFront(props, colours)];
  const frame = useRef<HTMLDivElement>(null);
  const pending = useRef(0);
  const at = (event: MouseEvent) => {
    const box = front.current!.getBoundingClientRect();
    const scale = places.width / box.width;
    return nearest(places, kept.nodes, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
  };
  const move = (event: PointerEvent) => {
    cancelAnimationFrame(pending.current);
    pending.current = requestAnimationFrame(() => front.current && props.point(at(event), event.clientX, event.clientY));
  };
  const leave = () => {
    cancelAnimationFrame(pending.current);
    props.point(-1, 0, 0);
  };
  const press = (event: KeyboardEvent) => {
    const step = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] }[event.key];
    if (step) {
      event.preventDefault();
      const first = kept.nodes.findLastIndex((alive, i) => alive === 1 && graph.nodes[i]!.kind === "logit");
      const next = active < 0 ? first : beside(places, kept.nodes, active, step[0]!, step[1]!);
      if (next >= 0) props.keep(next, false);
    } else if (event.key === "p" && active >= 0) props.keep(active, true);
  };
  useLayoutEffect(() => {
    const scroll = frame.current!.parentElement!;
    scroll.scrollLeft = scroll.scrollWidth; // the last token's nodes, which the prediction is read from
  }, [places]);
  useEffect(() => {
    const [scroll, x] = [frame.current!.closest(".scroll"), places.x[active]];
    if (scroll && x !== undefined && (x < scroll.scrollLeft || x > scroll.scrollLeft + scroll.clientWidth)) scroll.scrollLeft = x - scroll.clientWidth / 2;
  }, [active]);
  return (
    <div class="scroll" tabIndex={0} role="group" aria-label={`${label}. Arrow keys move between nodes, P pins one, Escape lets go.`} onKeyDown={press}>
      <div ref={frame} class={active < 0 ? "layers" : "layers dimmed"} style={{ width: `${places.width}px`, height: `${places.height}px` }} onPointerMove={move} onPointerLeave={leave} onClick={(event) => props.keep(at(event), event.shiftKey || event.ctrlKey || event.metaKey)}>
        <Names graph={graph} places={places} />
        <canvas ref={edges} class="base" />
        <canvas ref={nodes} class="base" />
        <canvas ref={front} />
      </div>
    </div>
  );
}

function NamesOf({ graph, places }: { graph: Graph; places: Layout }) {
  const rows = [...Array(graph.layers).keys()].filter((layer) => graph.layers <= 12 || layer % 5 === 0);
  return (
    <svg class="names" width={places.width} height={places.height} viewBox={`0 0 ${places.width} ${places.height}`} aria-hidden="true" font-size="10.5">
      {rows.map((layer) => (
        <g key={layer} fill="var(--muted)">
          <line x1={38} x2={places.width - 56} y1={places.row(layer)} y2={places.row(layer)} stroke="var(--line)" opacity="0.6" />
          <text x={28} y={places.row(layer) + 3.5} text-anchor="end">
            {layer}
          </text>
        </g>
      ))}
      {places.columns.map(({ left, width }, position) => (
        <g key={position}>
          <line x1={left} x2={left} y1={places.row(graph.layers)} y2={places.ground + 8} stroke="var(--line)" opacity="0.6" />
          <text transform={`translate(${left + width / 2 + 4} ${places.ground + 14}) rotate(60)`} fill="var(--ink)">
            {visible(graph.tokens[position]!).slice(0, 14)}
          </text>
        </g>
      ))}
      {graph.nodes.map(
        (node, i) =>
          node.kind === "logit" && (
            <text key={i} transform={`translate(${places.x[i]! + 3} ${places.y[i]! - 8}) rotate(-60)`} fill="var(--ink)">
              {visible(node.label).slice(0, 22)}
            </text>
          ),
      )}
    </svg>
  );
}
const Names = memo(NamesOf);

/* The picture as one SVG document, for files. */
export function asSvg(props: Pick<Props, "graph" | "places" | "kept" | "groupOf" | "pinned">, names: SVGSVGElement): SVGSVGElement {
  const { graph, places, kept } = props;
  const drawing = names.cloneNode(true) as SVGSVGElement;
  const add = (name: string, attributes: Record<string, string | number>) => {
    const item = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) item.setAttribute(key, String(value));
    drawing.append(item);
  };
  const largest = kept.influence[kept.ranked[0] ?? 0] || 1;
  for (const i of [...kept.ranked].reverse()) {
    const [source, target, weight] = graph.edges[i]!;
    const [ax, ay, ...rest] = curve(places, source, target).map((value) => value.toFixed(1));
    const width = 0.5 + 2.5 * Math.sqrt(kept.influence[i]! / largest);
    add("path", { d: `M${ax} ${ay}C${rest.join(" ")}`, fill: "none", stroke: `var(--${hue(weight)})`, "stroke-width": width.toFixed(2), "stroke-opacity": 0.45 });
  }
  graph.nodes.forEach((node, i) => {
    if (!kept.nodes[i]) return;
    const [x, y, size] = [places.x[i]!, places.y[i]!, places.radius[i]!];
    const [fill, outline] = paint(props, i);
    const look = { fill: `var(--${fill})`, stroke: `var(--${outline})`, "stroke-width": outline === "panel" ? 0.8 : 2 };
    if (isUnit(node)) add("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: size.toFixed(2), ...look });
    else add("rect", { x: (x - size).toFixed(1), y: (y - size).toFixed(1), width: (2 * size).toFixed(2), height: (2 * size).toFixed(2), ...look });
  });
  return drawing;
}
