/* An attribution graph, and which of its nodes and edges stay at a share of its influence. */
import type { Num } from "../shared/numbers";

export type Kind = "embed" | "bias" | "neuron" | "feature" | "mlp" | "logit";
export type GraphNode = {
  id: string;
  /* Its id in Neuronpedia's JSON. */
  key: string;
  kind: Kind;
  layer: number;
  position: number;
  label: string;
  value: Num;
  influence: number;
  effect: Num;
  /* What of its value comes from sources that are not drawn. */
  others: Num;
  heads: string;
};
/* Places of source and target among the nodes, and what the source brings. */
export type Link = [number, number, number];
export type Group = { name: string; members: number[] };
export type Choice = { pinned: number[]; groups: Group[] };
export type Graph = {
  /* What stands in its JSON beside nodes and links. */
  metadata: Record<string, any>;
  tokens: string[];
  layers: number;
  explains: string;
  nodes: GraphNode[];
  edges: Link[];
  /* The JSON that it was opened from. */
  source?: Record<string, any>;
};

export const isUnit = (node: GraphNode) => node.kind === "neuron" || node.kind === "feature";
const isFree = (node: GraphNode) => isUnit(node) || node.kind === "mlp";

/* Places of the fewest values with a share of the sum, larger first, of equal ones earlier first: `fewest` in Python. */
function fewest(values: Float64Array, places: number[], share: number): number[] {
  const ranked = places.toSorted((a, b) => values[b]! - values[a]! || a - b);
  const sums = [0];
  for (const place of ranked) sums.push(sums.at(-1)! + values[place]!);
  const enough = share * sums.at(-1)!;
  return ranked.filter((place, i) => sums[i]! < enough && values[place]! > 0);
}

/* What of a node's influence passes each edge and each node in the graph of kept edges alone. Edges lead to later nodes. */
export function flow(graph: Graph, order: number[], kept: (edge: number) => boolean): { edges: Float64Array; nodes: Float64Array } {
  const { nodes, edges } = graph;
  const sums = new Float64Array(nodes.length);
  edges.forEach(([, target, weight], i) => kept(i) && (sums[target]! += Math.abs(weight)));
  const total = Float64Array.from(nodes, (node) => (node.kind === "logit" ? node.influence : 0));
  const passed = new Float64Array(edges.length);
  for (const i of order) {
    const [source, target, weight] = edges[i]!;
    const share = kept(i) && sums[target]! > 0 ? Math.abs(weight) / sums[target]! : 0;
    total[source]! += share * total[target]!;
    passed[i] = share * total[target]!;
  }
  return { edges: passed, nodes: total };
}

/* Edges with the last targets first, so that a node's own influence is complete before it is passed on. */
export const lastFirst = (edges: Link[]): number[] => [...edges.keys()].sort((a, b) => edges[b]![1] - edges[a]![1] || a - b);

export type Within = {
  /* By node, whether it stays. */
  nodes: Uint8Array;
  /* By edge, whether it stays. */
  edges: Uint8Array;
  /* Edges that stay, most influence first. */
  ranked: number[];
  /* By edge, its influence in the graph of kept nodes alone. */
  influence: Float64Array;
};

/* What stays at shares of the influence of nodes and of edges: `within_shares` in Python, step by step. */
export function within(graph: Graph, order: number[], nodeShare: number, edgeShare: number): Within {
  const { nodes, edges } = graph;
  const free = [...nodes.keys()].filter((i) => isFree(nodes[i]!));
  const alive = Uint8Array.from(nodes, (node) => (isFree(node) ? 0 : 1));
  for (const i of fewest(Float64Array.from(nodes, (node) => node.influence), free, nodeShare)) alive[i] = 1;
  const between = (i: number) => alive[edges[i]![0]] === 1 && alive[edges[i]![1]] === 1;
  const influence = flow(graph, order, between).edges;
  let ranked = fewest(influence, [...edges.keys()].filter(between), edgeShare);
  for (;;) {
    const [out, into] = [new Uint8Array(nodes.length), new Uint8Array(nodes.length)];
    for (const i of ranked) {
      out[edges[i]![0]] = 1;
      into[edges[i]![1]] = 1;
    }
    const dead = free.filter((i) => alive[i] && (!out[i] || (isUnit(nodes[i]!) && !into[i])));
    if (!dead.length) break;
    for (const i of dead) alive[i] = 0;
    ranked = ranked.filter(between);
  }
  const kept = new Uint8Array(edges.length);
  for (const i of ranked) kept[i] = 1;
  return { nodes: alive, edges: kept, ranked, influence };
}
