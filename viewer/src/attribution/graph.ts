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

/* Places by their values, largest first, of equal ones earlier first; those of 0 are left out. And the sums in front of each. */
type Ranked = { places: number[]; before: Float64Array; whole: number };

function ranked(values: Float64Array, places: number[]): Ranked {
  const order = places.filter((place) => values[place]! > 0).sort((a, b) => values[b]! - values[a]! || a - b);
  const before = new Float64Array(order.length);
  let whole = 0;
  order.forEach((place, i) => {
    before[i] = whole;
    whole += values[place]!;
  });
  return { places: order, before, whole };
}

/* The fewest of them with a share of the sum: `fewest` in Python. */
function fewest({ places, before, whole }: Ranked, share: number): number[] {
  const end = before.findIndex((sum) => sum >= share * whole);
  return end < 0 ? places : places.slice(0, end);
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
  /* Edges that stay, most influence first. */
  ranked: number[];
  /* By edge, its influence in the graph of kept nodes alone. */
  influence: Float64Array;
};

export type Nodes = {
  /* By node, whether it stays. */
  alive: Uint8Array;
  /* Edges between nodes that stay. */
  edges: Ranked;
  /* By edge, its influence in the graph of these nodes alone. */
  influence: Float64Array;
};

/* The fewest nodes with a share of the influence, and the edges between them: the first half of `within_shares` in Python. */
export function nodesWithin(graph: Graph, order: number[], share: number): Nodes {
  const { nodes, edges } = graph;
  const free = [...nodes.keys()].filter((i) => isFree(nodes[i]!));
  const alive = Uint8Array.from(nodes, (node) => (isFree(node) ? 0 : 1));
  for (const i of fewest(ranked(Float64Array.from(nodes, (node) => node.influence), free), share)) alive[i] = 1;
  const between = (i: number) => alive[edges[i]![0]] === 1 && alive[edges[i]![1]] === 1;
  const influence = flow(graph, order, between).edges;
  return { alive, edges: ranked(influence, [...edges.keys()].filter(between)), influence };
}

/* The fewest edges of them with a share of the influence, without nodes that then have no edge in or out: the other half. */
export function edgesWithin(graph: Graph, { alive, edges: all, influence }: Nodes, share: number): Within {
  const { nodes, edges } = graph;
  const left = alive.slice();
  let kept = fewest(all, share);
  for (;;) {
    const [out, into] = [new Uint8Array(nodes.length), new Uint8Array(nodes.length)];
    for (const i of kept) {
      out[edges[i]![0]] = 1;
      into[edges[i]![1]] = 1;
    }
    let dead = false;
    nodes.forEach((node, i) => {
      if (!left[i] || !isFree(node) || (out[i] && (into[i] || !isUnit(node)))) return;
      left[i] = 0;
      dead = true;
    });
    if (!dead) return { nodes: left, ranked: kept, influence };
    kept = kept.filter((i) => left[edges[i]![0]] && left[edges[i]![1]]);
  }
}
