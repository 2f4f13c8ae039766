/* What is known of a node or a group, with its connections sorted by weight. */
import { useState } from "preact/hooks";
import { fixed } from "../shared/numbers";
import { isUnit, type Graph, type Group, type Within } from "./graph";
import { hue, ring } from "./picture";

const LISTED = 15;
export const percent = (value: number) => `${(100 * value).toPrecision(2)}\u00a0%`;
const signed = (value: number) => (value > 0 ? "+" : "") + fixed(value, Math.abs(value) >= 10 ? 1 : 3);

type Go = { keep: (node: number) => void };
export type Row = { node: number; weight: number };

export function sorted(graph: Graph, edges: number[], end: 0 | 1): Row[] {
  return edges.map((i) => ({ node: graph.edges[i]![end], weight: graph.edges[i]![2] })).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
}

export function Connections({ graph, title, rows, keep }: { graph: Graph; title: string; rows: Row[] } & Go) {
  const [all, setAll] = useState(false);
  if (!rows.length) return null;
  return (
    <>
      <h3>
        {title} ({rows.length})
      </h3>
      <ol>
        {(all ? rows : rows.slice(0, LISTED)).map(({ node, weight }, i) => (
          <li key={i}>
            <button type="button" class="name" onClick={() => keep(node)}>
              {graph.nodes[node]!.id}
            </button>
            <span title={graph.nodes[node]!.label}>{graph.nodes[node]!.label}</span>
            <span class={`num ${hue(weight)}`}>{signed(weight)}</span>
          </li>
        ))}
      </ol>
      {rows.length > LISTED && (
        <button type="button" onClick={() => setAll(!all)}>
          {all ? "Fewer" : `All ${rows.length}`}
        </button>
      )}
    </>
  );
}

type NodeProps = {
  graph: Graph;
  node: number;
  touching: number[];
  kept: boolean;
  pinned: boolean;
  /* Whether it is left out at the sliders' shares. */
  left: boolean;
  group: Group | undefined;
  pin: () => void;
  close: () => void;
} & Go;

export function NodePanel({ graph, node: place, touching, kept, pinned, left, group, pin, close, keep }: NodeProps) {
  const node = graph.nodes[place]!;
  const facts = [
    ...(node.value === null ? [] : [`${node.kind === "logit" ? "explained" : "activation"} ${signed(node.value)}`]),
    ...(node.effect === null ? [] : [`effect by all paths ${signed(node.effect)}`]),
    `influence ${percent(node.influence)}`,
    ...(node.others === null ? [] : [`from sources not drawn ${signed(node.others)}`]),
  ];
  const token = graph.tokens[node.position];
  return (
    <>
      <header>
        <b>{node.id}</b>
        <span>{JSON.stringify(token ?? "")}</span>
      </header>
      {kept && (
        <p class="buttons">
          <button type="button" aria-pressed={pinned} onClick={pin}>
            {pinned ? "Unpin" : "Pin"}
          </button>
          <button type="button" class="close" onClick={close}>
            Close
          </button>
        </p>
      )}
      {node.label && <p>{node.label}</p>}
      <p class="note">{facts.join(", ")}</p>
      {node.heads && <p class="note">{node.heads}</p>}
      {left && <p class="note">It is left out at these shares: move the sliders up to see its edges.</p>}
      {group && <p class="note">Group: {group.name}</p>}
      <Connections key={`in ${place}`} graph={graph} title="Edges in" rows={sorted(graph, touching.filter((i) => graph.edges[i]![1] === place), 0)} keep={keep} />
      <Connections key={`out ${place}`} graph={graph} title="Edges out" rows={sorted(graph, touching.filter((i) => graph.edges[i]![0] === place), 1)} keep={keep} />
    </>
  );
}

/* Nodes of a search, or those with most influence. */
export function NodeList({ graph, title, note, nodes, keep }: { graph: Graph; title: string; note: string; nodes: number[] } & Go) {
  return (
    <>
      <h3>{title}</h3>
      <p class="note">{note}</p>
      <ol>
        {nodes.slice(0, LISTED).map((i) => {
          const node = graph.nodes[i]!;
          return (
            <li key={i}>
              <button type="button" class="name" onClick={() => keep(i)}>
                {node.id}
              </button>
              <span title={node.label}>{node.label}</span>
              <span class={`num ${hue(node.effect)}`}>{node.effect === null ? percent(node.influence) : fixed(node.effect, 2)}</span>
            </li>
          );
        })}
      </ol>
    </>
  );
}

export const strongest = (graph: Graph, kept: Within): number[] =>
  [...graph.nodes.keys()].filter((i) => kept.nodes[i] && isUnit(graph.nodes[i]!)).sort((a, b) => graph.nodes[b]!.influence - graph.nodes[a]!.influence);

export const groupColour = (group: number) => ({ borderColor: `var(--${ring(group)})` });
