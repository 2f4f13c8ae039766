/* Information flow routes: a threshold to slide, heads of an edge on click.

Used by reports and by the app's prompt box; what is chosen is the caller's to keep. */
import { useLayoutEffect, useState } from "preact/hooks";
import { Adopted } from "./adopted";
import { Files } from "./files";

const LISTED = 15;
const AROUND = [1.5, 3, 5].flatMap((far): [number, number][] => [[0, -far], [0, far], [-far, 0], [far, 0]]);

type Edge = { source: string; target: string; kind: string; importance: number; heads: number[]; residual: number };
export type RouteData = { tokens: string[]; target: string; edges: Edge[]; threshold: number; lowest: number; slides: boolean; parts: Part[] };
/* A head or MLP at a token, its importance, and what it adds to the logits of tokens. */
type Part = [string, number, [string, number][]];

/* Which edges lie on the route at a threshold: those of at least it, reached from the target over such edges. */
export function onRoute(edges: Edge[], target: string, threshold: number): Set<number> {
  const into = Map.groupBy(edges.keys(), (i) => edges[i]!.target);
  const found = new Set<number>();
  const reached = new Set([target]);
  for (const node of reached) {
    for (const i of into.get(node) ?? []) {
      const edge = edges[i]!;
      if (edge.kind !== "reads" && edge.importance < threshold) continue;
      found.add(i);
      reached.add(edge.source);
    }
  }
  return found;
}

/* The threshold, and the edge or node that was clicked. */
export type RouteShown = { threshold: number; edge: number; node: string };
type Props = RouteShown & { data: RouteData; title: string; drawing: SVGSVGElement; show: (changes: Partial<RouteShown>) => void };

export function RoutesView({ data, title, drawing, threshold, edge, node, show }: Props) {
  const [kept, setKept] = useState<Set<number>>(new Set());
  useLayoutEffect(() => {
    const edges = onRoute(data.edges, data.target, data.slides ? threshold : 0);
    const nodes = new Set([data.target, ...[...edges].map((i) => data.edges[i]!.source)]);
    const only = (item: Element, shown: boolean) => (shown ? item.removeAttribute("display") : item.setAttribute("display", "none"));
    for (const item of drawing.querySelectorAll<SVGElement>("[data-edge]")) only(item, edges.has(Number(item.dataset.edge)));
    for (const item of drawing.querySelectorAll<SVGElement>("[data-node]")) only(item, nodes.has(item.dataset.node!));
    setKept(edges);
  }, [data, drawing, threshold]);
  useLayoutEffect(() => {
    for (const item of drawing.querySelectorAll<SVGElement>("[data-edge], [data-node]")) item.classList.toggle("chosen", item.dataset.node === undefined ? Number(item.dataset.edge) === edge : item.dataset.node === node);
  }, [drawing, edge, node]);
  const pick = (event: MouseEvent) => {
    const item = itemAt(event);
    if (item) show(item.dataset.node === undefined ? { edge: Number(item.dataset.edge), node: "" } : { edge: -1, node: item.dataset.node });
  };
  const choose = (i: number) => show({ edge: i, node: "" });
  const chosen = data.edges[edge];
  return (
    <>
      {data.slides && data.lowest < data.threshold && (
        <div class="controls">
          <label class="slider">
            <span>Threshold</span>
            <input type="range" min={data.lowest} max={0.5} step={0.005} value={threshold} onInput={(event) => show({ threshold: Number(event.currentTarget.value) })} />
          </label>
          <output>
            {threshold.toFixed(3)}: {kept.size} edges
          </output>
        </div>
      )}
      <div class="stage">
        <figure onClick={pick}>
          <Adopted drawing={drawing} label={title} />
          <Files name={title} svg={() => drawing} texts={{ json: () => JSON.stringify(data) }} />
        </figure>
        <aside>
          <div class="panel" role="status">
            {chosen ? <Heads data={data} edge={chosen} /> : node ? <Node data={data} node={node} show={choose} /> : <Strongest data={data} kept={kept} show={choose} />}
          </div>
        </aside>
      </div>
    </>
  );
}

const place = (data: RouteData, node: string) => {
  const [name, token] = node.split("@");
  return `${name}, token ${token} ${JSON.stringify(data.tokens[Number(token)])}`;
};

/* What a part adds to the logits of tokens. */
function Promoted({ data, part }: { data: RouteData; part: string }) {
  const found = data.parts.find(([name]) => name === part);
  return found ? <span class="note promoted">{found[2].map(([token, value]) => `${JSON.stringify(token)} ${value < 0 ? "\u2212" : "+"}${Math.abs(value).toFixed(2)}`).join(", ")}</span> : null;
}

function Heads({ data, edge }: { data: RouteData; edge: Edge }) {
  const [layer, token] = [edge.source.match(/\d+/)?.[0], edge.target.split("@")[1]];
  const parts = edge.heads.map((value, head): [string, number, string] => [`h${head}`, value, `a${layer}.h${head}@${token}`]).filter((part) => part[1] >= 0.0005);
  if (edge.residual) parts.push(["residual", edge.residual, ""]);
  if (edge.kind === "mlp") parts.push(["MLP", edge.importance, edge.source]);
  parts.sort((a, b) => b[1] - a[1]);
  return (
    <>
      <h3>
        {place(data, edge.source)} to {place(data, edge.target)}
      </h3>
      <p>
        {edge.kind}, importance {edge.importance.toFixed(3)}
      </p>
      <ol>
        {parts.map(([name, value, part]) => (
          <li key={name}>
            <span class="name">{name}</span>
            <meter min={0} max={1} value={value / edge.importance} aria-label={`share of ${name}`} />
            <span class="num">{value.toFixed(3)}</span>
            <Promoted data={data} part={part} />
          </li>
        ))}
      </ol>
    </>
  );
}

/* Some edges, the most important first. */
function EdgeList({ data, edges, show, to = false }: { data: RouteData; edges: number[]; show: (edge: number) => void; to?: boolean }) {
  return (
    <ol>
      {edges
        .sort((a, b) => data.edges[b]!.importance - data.edges[a]!.importance)
        .slice(0, LISTED)
        .map((i) => (
          <li key={i}>
            <button type="button" class="name" onClick={() => show(i)}>
              {data.edges[i]!.source}
              {to && ` \u2192 ${data.edges[i]!.target}`}
            </button>
            <span class="kind">{data.edges[i]!.kind}</span>
            <span class="num">{data.edges[i]!.importance.toFixed(3)}</span>
          </li>
        ))}
    </ol>
  );
}

function Node({ data, node, show }: { data: RouteData; node: string; show: (edge: number) => void }) {
  const into = [...data.edges.keys()].filter((i) => data.edges[i]!.target === node);
  return (
    <>
      <h3>{place(data, node)}</h3>
      <p>
        <Promoted data={data} part={node} />
      </p>
      {into.length > 0 && <h3>Made of</h3>}
      <EdgeList data={data} edges={into} show={show} />
    </>
  );
}

function Strongest({ data, kept, show }: { data: RouteData; kept: Set<number>; show: (edge: number) => void }) {
  return (
    <>
      <p class="note">Click a line to see its heads and what they promote, a square or circle to see what it is made of.</p>
      <h3>Strongest attention</h3>
      <EdgeList data={data} edges={[...kept].filter((i) => data.edges[i]!.kind === "attention")} show={show} to />
    </>
  );
}

/* The line or node within a few pixels of a click: lines are thin. */
function itemAt({ clientX: x, clientY: y, target }: MouseEvent): SVGElement | null {
  const items = [target as Element, ...AROUND.map(([dx, dy]) => document.elementFromPoint(x + dx, y + dy))];
  return items.map((item) => item?.closest<SVGElement>("[data-edge], [data-node]") ?? null).find((item) => item) ?? null;
}
