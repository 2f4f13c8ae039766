/* Information flow routes: a threshold to slide, heads of an edge on click. */
import { useLayoutEffect, useState } from "preact/hooks";
import { useShown } from "../shared/address";
import { Adopted } from "../shared/adopted";
import { Files } from "../shared/files";
import type { ViewProps } from "../shared/registry";

type Edge = { source: string; target: string; kind: string; importance: number; heads: number[]; residual: number };
type Data = { tokens: string[]; target: string; edges: Edge[]; threshold: number; lowest: number; slides: boolean };

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

export default function Routes({ id, data, title, drawing }: ViewProps<Data>) {
  const [{ threshold, edge }, show] = useShown(id, { threshold: data.threshold, edge: -1 });
  const [kept, setKept] = useState<Set<number>>(new Set());
  useLayoutEffect(() => {
    const edges = onRoute(data.edges, data.target, data.slides ? threshold : 0);
    const nodes = new Set([data.target, ...[...edges].map((i) => data.edges[i]!.source)]);
    const only = (item: Element, shown: boolean) => (shown ? item.removeAttribute("display") : item.setAttribute("display", "none"));
    for (const item of drawing!.querySelectorAll<SVGElement>("[data-edge]")) only(item, edges.has(Number(item.dataset.edge)));
    for (const item of drawing!.querySelectorAll<SVGElement>("[data-node]")) only(item, nodes.has(item.dataset.node!));
    setKept(edges);
  }, [threshold]);
  const pick = (event: Event) => {
    const item = (event.target as Element).closest<SVGElement>("[data-edge]");
    if (item) show({ edge: Number(item.dataset.edge) });
  };
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
          <Adopted drawing={drawing!} label={title} />
          <Files name={title} svg={() => drawing} texts={{ json: () => JSON.stringify(data) }} />
        </figure>
        <aside>
          <div class="panel" role="status">
            {chosen ? <Heads data={data} edge={chosen} /> : <p class="note">Click a line to see its heads.</p>}
          </div>
        </aside>
      </div>
    </>
  );
}

function Heads({ data, edge }: { data: Data; edge: Edge }) {
  const place = (node: string) => {
    const [name, token] = node.split("@");
    return `${name}, token ${token} ${JSON.stringify(data.tokens[Number(token)])}`;
  };
  const parts = edge.heads.map((value, head): [string, number] => [`h${head}`, value]).filter((part) => part[1] >= 0.0005);
  if (edge.residual) parts.push(["residual", edge.residual]);
  parts.sort((a, b) => b[1] - a[1]);
  return (
    <>
      <h3>
        {place(edge.source)} to {place(edge.target)}
      </h3>
      <p>
        {edge.kind}, importance {edge.importance.toFixed(3)}
      </p>
      <ol>
        {parts.map(([name, value]) => (
          <li key={name}>
            <span class="name">{name}</span>
            <meter min={0} max={1} value={value / edge.importance} />
            <span class="num">{value.toFixed(3)}</span>
          </li>
        ))}
      </ol>
    </>
  );
}
