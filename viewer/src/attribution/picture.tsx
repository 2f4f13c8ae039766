/* The drawing of an attribution graph: edges and dots on canvases, names in SVG above them. */
import { render } from "preact";
import { memo } from "preact/compat";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import { useColours, type Colours } from "../shared/colours";
import { Pace } from "../shared/pace";
import { shown as visible } from "../shared/tokens";
import { penOfNames, seen, useZoom, whole, ZoomButtons, type Sight } from "../shared/zoom";
import { isUnit, type Graph, type Within } from "./graph";
import { beside, curve, nearest, type Layout } from "./layout";

const UNSEEN = 8; // so many edges outside of what is seen take as long as one that is drawn
const PAUSE = 120; // milliseconds
const NAMED = 2; // the scale from which on nodes have names
const RINGS = ["m1", "m2", "m3", "m4", "m5", "m6"] as const;
export const ring = (group: number) => RINGS[group % RINGS.length]!;
export const hue = (value: number | null) => ((value ?? 0) > 0 ? "helps" : (value ?? 0) < 0 ? "hurts" : "muted");

type Props = {
  id: string;
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

type Painted = Omit<Props, "id"> & { sight: Sight };

/* Lines and dots grow less than the drawing. */
const thin = (sight: Sight) => 1 / Math.sqrt(Math.max(1, sight.scale));

function prepared(canvas: HTMLCanvasElement, sight: Sight): CanvasRenderingContext2D {
  const scale = sight.css * Math.min(devicePixelRatio || 1, Math.sqrt(2e7 / (sight.wide * sight.high)) / sight.css);
  const [width, height] = [Math.floor(sight.wide * scale), Math.floor(sight.high * scale)];
  const context = canvas.getContext("2d")!;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  context.reset();
  context.setTransform(scale, 0, 0, scale, -sight.x * scale, -sight.y * scale);
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
function dots(context: CanvasRenderingContext2D, props: Painted, some: Iterable<number>, colours: Colours) {
  for (const [look, nodes] of Map.groupBy(some, (i) => paint(props, i).join(" "))) {
    const [fill, outline] = look.split(" ") as [keyof Colours, keyof Colours];
    context.beginPath();
    for (const i of nodes) outlineOf(context, props, i);
    context.fillStyle = colours[fill];
    context.fill();
    context.lineWidth = (outline === "panel" ? 0.8 : 2) * thin(props.sight);
    context.strokeStyle = colours[outline];
    context.stroke();
  }
}

function outlineOf(context: CanvasRenderingContext2D, { graph, places, sight }: Painted, i: number) {
  const [x, y, size] = [places.x[i]!, places.y[i]!, places.radius[i]! * thin(sight)];
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
function useEdges({ graph, places, kept, sight }: Painted, colours: Colours) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const pace = useRef(new Pace());
  useLayoutEffect(() => {
    const context = prepared(canvas.current!, sight);
    const largest = kept.influence[kept.ranked[0] ?? 0] || 1;
    let [next, waiting] = [0, 0];
    context.globalCompositeOperation = "destination-over";
    context.globalAlpha = 0.45;
    const more = () => {
      for (let left = pace.current.take(); left > 0 && next < kept.ranked.length; next++) {
        const edge = kept.ranked[next]!;
        const drawn = touches(places, sight, graph.edges[edge]!);
        left -= drawn ? 1 : 1 / UNSEEN;
        if (drawn) stroke(context, graph, places, edge, (0.5 + 2.5 * Math.sqrt(kept.influence[edge]! / largest)) * thin(sight), colours);
      }
      if (next < kept.ranked.length) waiting = requestAnimationFrame(more);
      else canvas.current?.setAttribute("data-drawn", String(next));
    };
    canvas.current!.removeAttribute("data-drawn");
    more();
    return () => cancelAnimationFrame(waiting);
  }, [graph, places, kept, sight, colours]);
  return canvas;
}

/* Whether an edge may pass through what is seen: it stays between its ends, but for how far it bends at them. */
function touches(places: Layout, sight: Sight, [source, target]: Graph["edges"][number]): boolean {
  const [ax, ay, bx, by] = [places.x[source]!, places.y[source]!, places.x[target]!, places.y[target]!];
  return seen(sight, Math.min(ax, bx), Math.min(ay, by) - 8, Math.max(ax, bx), Math.max(ay, by) + 8);
}

/* Names of nodes below them, those of most influence first, none over another. */
function names(context: CanvasRenderingContext2D, { graph, places, kept, sight }: Painted, colours: Colours) {
  if (sight.scale < NAMED) return;
  const inside = [...graph.nodes.keys()].filter((i) => kept.nodes[i] && graph.nodes[i]!.kind !== "logit" && seen(sight, places.x[i]!, places.y[i]!, places.x[i]!, places.y[i]!));
  const taken = new Map<number, [number, number][]>();
  const letter = penOfNames(context, sight, colours);
  for (const i of inside.sort((a, b) => graph.nodes[b]!.influence - graph.nodes[a]!.influence)) {
    const [{ label, id }, x, y] = [graph.nodes[i]!, places.x[i]!, places.y[i]!];
    const words = visible(label || id).slice(0, 18);
    const half = (0.29 * letter * words.length + 3) / sight.css;
    const row = taken.get(y) ?? taken.set(y, []).get(y)!;
    if (row.some(([left, right]) => x + half > left && x - half < right)) continue;
    row.push([x - half, x + half]);
    const below = y + places.radius[i]! * thin(sight) + 2 / sight.css;
    context.strokeText(words, x, below);
    context.fillText(words, x, below);
  }
}

/* Nodes that are kept. */
function useDots(props: Painted, colours: Colours) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { graph, places, kept, pinned, groupOf, sight } = props;
  useLayoutEffect(() => {
    const context = prepared(canvas.current!, sight);
    dots(context, props, [...graph.nodes.keys()].filter((i) => kept.nodes[i] && seen(sight, places.x[i]! - 9, places.y[i]! - 9, places.x[i]! + 9, places.y[i]! + 9)), colours);
    const waiting = setTimeout(() => names(context, props, colours), PAUSE); // not in every frame of a gesture
    return () => clearTimeout(waiting);
  }, [graph, places, kept, pinned, groupOf, sight, colours]);
  return canvas;
}

/* One node with its edges and their other ends, above all else. */
function useFront(props: Painted, colours: Colours) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { graph, places, active, touching, found, pinned, groupOf, sight } = props;
  useLayoutEffect(() => {
    const context = prepared(canvas.current!, sight);
    const ring = (i: number, wider: number) => (context.beginPath(), context.arc(places.x[i]!, places.y[i]!, (places.radius[i]! + wider) * thin(sight), 0, 2 * Math.PI));
    context.lineWidth = thin(sight);
    for (const i of found ?? []) {
      ring(i, 4);
      context.strokeStyle = colours.ink;
      context.stroke();
    }
    if (active < 0) return;
    const most = Math.max(...touching.map((i) => Math.abs(graph.edges[i]![2])), 1e-12);
    context.globalAlpha = 0.75;
    for (const i of [...touching].reverse()) stroke(context, graph, places, i, (0.4 + 3 * Math.sqrt(Math.abs(graph.edges[i]![2]) / most)) * thin(sight), colours);
    context.globalAlpha = 1;
    dots(context, props, new Set([active, ...touching.flatMap((edge) => graph.edges[edge]!.slice(0, 2))]), colours);
    ring(active, 3);
    context.lineWidth = 1.6 * thin(sight);
    context.strokeStyle = colours.ink;
    context.stroke();
  }, [graph, places, active, touching, found, pinned, groupOf, sight, colours]);
  return canvas;
}

export function Picture(props: Props) {
  const { graph, places, kept, active, label } = props;
  const colours = useColours();
  const [around, frame] = [useRef<HTMLDivElement>(null), useRef<HTMLDivElement>(null)];
  const zoom = useZoom(props.id, places.width, places.height, around, frame, () => 1);
  const { sight } = zoom;
  const painted = { ...props, sight };
  const [edges, nodes, front] = [useEdges(painted, colours), useDots(painted, colours), useFront(painted, colours)];
  const pending = useRef(0);
  const at = (event: MouseEvent) => nearest(places, kept.nodes, ...zoom.at(event), 9 * thin(sight));
  const move = (event: PointerEvent) => {
    cancelAnimationFrame(pending.current);
    pending.current = requestAnimationFrame(() => front.current && props.point(at(event), event.clientX, event.clientY));
  };
  const leave = () => {
    cancelAnimationFrame(pending.current);
    props.point(-1, 0, 0);
  };
  const press = (event: KeyboardEvent) => {
    if (zoom.press(event)) return;
    const step = { ArrowUp: [0, 1], ArrowDown: [0, -1], ArrowRight: [1, 0], ArrowLeft: [-1, 0] }[event.key];
    if (step) {
      event.preventDefault();
      const first = kept.nodes.findLastIndex((alive, i) => alive === 1 && graph.nodes[i]!.kind === "logit");
      const next = active < 0 ? first : beside(places, kept.nodes, active, step[0]!, step[1]!);
      if (next >= 0) props.keep(next, false);
    } else if (event.key === "p" && active >= 0) props.keep(active, true);
  };
  useLayoutEffect(() => {
    const scroll = around.current!;
    scroll.scrollLeft = scroll.scrollWidth; // the last token's nodes, which the prediction is read from
  }, [places]);
  useEffect(() => {
    if (active < 0) return;
    const [scroll, x] = [around.current!, places.x[active]! * sight.css];
    if (sight.scale > 1) zoom.reveal(places.x[active]!, places.y[active]!);
    else if (x < scroll.scrollLeft || x > scroll.scrollLeft + scroll.clientWidth) scroll.scrollLeft = x - scroll.clientWidth / 2;
  }, [active]);
  return (
    <>
      <div ref={around} class="scroll" tabIndex={0} role="group" aria-label={`${label}. Arrow keys move between nodes, P pins one, Escape lets go, plus and minus zoom.`} onKeyDown={press}>
        <div ref={frame} class={active < 0 ? "layers" : "layers dimmed"} style={zoom.style} onPointerMove={move} onPointerLeave={leave} onClick={(event) => props.keep(at(event), event.shiftKey || event.ctrlKey || event.metaKey)}>
          <svg viewBox={`${sight.x} ${sight.y} ${sight.wide} ${sight.high}`} aria-hidden="true">
            <Rules graph={graph} places={places} />
          </svg>
          <canvas ref={edges} class="base" />
          <canvas ref={nodes} class="base" />
          <canvas ref={front} />
          <Names graph={graph} places={places} sight={sight} />
        </div>
      </div>
      <ZoomButtons zoom={zoom} />
    </>
  );
}

/* Lines of blocks and tokens. */
const Rules = memo(function Rules({ graph, places }: { graph: Graph; places: Layout }) {
  const rule = (x1: number, x2: number, y1: number, y2: number) => <line key={`${x1} ${y1}`} x1={x1} x2={x2} y1={y1} y2={y2} stroke="var(--line)" opacity="0.6" vector-effect="non-scaling-stroke" />;
  return (
    <g>
      {[...Array(graph.layers).keys()].filter(numbered(graph)).map((layer) => rule(38, places.width - 56, places.row(layer), places.row(layer)))}
      {places.columns.map(({ left }) => rule(left, left, places.row(graph.layers), places.ground + 8))}
    </g>
  );
});

const numbered = (graph: Graph) => (layer: number) => graph.layers <= 12 || layer % 5 === 0;

/* Numbers of blocks, tokens and explained logits; of a part of the drawing, those of its rows and columns at its edges. */
function Names({ graph, places, sight }: { graph: Graph; places: Layout; sight: Sight }) {
  const part = sight.scale > 1;
  const scale = part ? sight.css : 1;
  const [wide, high] = [sight.wide * scale, sight.high * scale];
  const [across, down] = [(x: number) => (x - sight.x) * scale, (y: number) => (y - sight.y) * scale];
  const rows = [...Array(graph.layers).keys()].filter((layer) => (part ? down(places.row(layer)) > 8 && down(places.row(layer)) < high - 30 : numbered(graph)(layer)));
  return (
    <svg class="names axes" viewBox={`0 0 ${wide} ${high}`} aria-hidden="true" font-size={part ? 11 : 10.5}>
      {part && <path d={`M0 0H30V${high - 26}H${wide}V${high}H0Z`} fill="var(--panel)" opacity=".88" />}
      <g fill="var(--muted)" text-anchor="end">
        {rows.map((layer) => (
          <text key={layer} x={part ? 24 : 28} y={down(places.row(layer)) + 3.5}>
            {layer}
          </text>
        ))}
      </g>
      <g fill="var(--ink)">
        {places.columns.map(({ left, width }, position) => {
          const words = visible(graph.tokens[position]!);
          if (!part)
            return (
              <text key={position} transform={`translate(${left + width / 2 + 4} ${places.ground + 14}) rotate(60)`}>
                {words.slice(0, 14)}
              </text>
            );
          const [from, to] = [Math.max(34, across(left)), Math.min(wide - 4, across(left + width))]; // in the middle of what is seen of it
          return (
            to - from > 12 && (
              <text key={position} x={(from + to) / 2} y={high - 9} text-anchor="middle">
                {words.slice(0, Math.floor((to - from) / 6.5))}
              </text>
            )
          );
        })}
        {graph.nodes.map(
          (node, i) =>
            node.kind === "logit" && (
              <text key={i} transform={`translate(${across(places.x[i]!) + 3} ${down(places.y[i]!) - 8}) rotate(-60)`}>
                {visible(node.label).slice(0, 22)}
              </text>
            ),
        )}
      </g>
    </svg>
  );
}

/* The picture as one SVG document, for files. */
export function asSvg(props: Pick<Props, "graph" | "places" | "kept" | "groupOf" | "pinned">): SVGSVGElement {
  const { graph, places, kept } = props;
  const holder = document.createElement("div");
  render(<Names graph={graph} places={places} sight={whole(places.width, places.height)} />, holder);
  const drawing = holder.firstElementChild as SVGSVGElement;
  const rules = document.createElementNS("http://www.w3.org/2000/svg", "g");
  render(<Rules graph={graph} places={places} />, rules);
  drawing.prepend(rules);
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
