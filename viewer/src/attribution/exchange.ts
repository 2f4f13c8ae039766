/* Attribution graphs from and to the JSON of circuit-tracer and Neuronpedia; circuitome/attribution_graphs in Python. */
import type { Choice, Graph, GraphNode, Kind, Link } from "./graph";
import { flow, isUnit, lastFirst } from "./graph";

const FEATURE = "cross layer transcoder";
const KINDS: Record<string, Kind> = { [FEATURE]: "feature", "mlp reconstruction error": "mlp", embedding: "embed", logit: "logit" };
const REST = "others";
const MOST = { nodes: 100_000, links: 2_000_000 };

type Json = Record<string, any>;

/* The graph in a text, and what was pinned and grouped there. Throws an Error that says what is wrong. */
export function opened(text: string): { graph: Graph; choice: Choice } {
  let data: Json;
  try {
    data = JSON.parse(text);
  } catch (error) {
    throw new Error(`The file is not valid JSON: ${(error as Error).message}.`);
  }
  const tokens: unknown = data?.metadata?.prompt_tokens;
  const missing = [...["nodes", "links"].filter((name) => !Array.isArray(data?.[name])), ...(Array.isArray(tokens) ? [] : ["metadata.prompt_tokens"])];
  if (missing.length) throw new Error(`The file is no attribution graph: it has no ${missing.join(", ")}.`);
  if (data.nodes.length > MOST.nodes || data.links.length > MOST.links) throw new Error(`The graph has ${data.nodes.length} nodes and ${data.links.length} links; a page shows ${MOST.nodes} and ${MOST.links} at most.`);
  const ours = data.metadata.info?.generator?.name === "circuitome";
  const entries: Json[] = data.nodes;
  const read = entries.map((entry) => nodeOf(entry, ours));
  const order = [...read.keys()].sort((a, b) => rank(read[a]!) - rank(read[b]!) || read[a]!.layer - read[b]!.layer || read[a]!.position - read[b]!.position || a - b);
  const place = new Map(order.map((old, i) => [old, i]));
  const nodes = order.map((i) => read[i]!);
  const places = new Map<string, number[]>();
  entries.forEach((entry, i) => places.set(String(entry.node_id), [...(places.get(String(entry.node_id)) ?? []), place.get(i)!]));
  const edges = linksOf(data.links, nodes, places);
  const layers = Math.max(0, ...nodes.filter((node) => node.kind === "logit").map((node) => node.layer));
  const explains = nodes.filter((node) => node.kind === "logit").map((node) => node.label).join(", ");
  const graph: Graph = { metadata: data.metadata, tokens: (tokens as unknown[]).map(String), layers, explains, nodes, edges, source: data };
  const influence = flow(graph, lastFirst(edges), () => true).nodes;
  nodes.forEach((node, i) => (node.influence = influence[i]!));
  const unique = (key: unknown) => places.get(String(key))?.[0] ?? -1;
  const known = (keys: unknown[]) => [...new Set(keys.map(unique).filter((i) => i >= 0))];
  const supernodes: unknown[][] = (data.qParams?.supernodes ?? []).filter(Array.isArray);
  const groups = supernodes.map(([name, ...keys]) => ({ name: String(name), members: known(keys) })).filter((group) => group.members.length);
  return { graph, choice: { pinned: known(data.qParams?.pinnedIds ?? []), groups } };
}

const rank = (node: GraphNode) => (node.kind === "logit" ? 1 : 0);
const finite = (value: unknown) => (typeof value === "number" && Number.isFinite(value) ? value : null);

function nodeOf(entry: Json, ours: boolean): GraphNode {
  const kind = KINDS[String(entry.feature_type)];
  if (!kind) throw new Error(`Node ${JSON.stringify(entry.node_id)} has the type ${JSON.stringify(entry.feature_type)}. Known types: ${Object.keys(KINDS).join(", ")}.`);
  const [key, clerp] = [String(entry.node_id), String(entry.clerp ?? "")];
  const layer = entry.layer === "E" ? -1 : Number(entry.layer) - (kind === "logit" ? 1 : 0);
  const position = Number(entry.ctx_idx);
  if (!Number.isInteger(layer) || !Number.isInteger(position) || position < 0) throw new Error(`Node ${JSON.stringify(key)} has the layer ${JSON.stringify(entry.layer)} and the place ${JSON.stringify(entry.ctx_idx)}.`);
  const index = (key.match(/-?\d+/g) ?? []).at(-2) ?? "0";
  const neuron = ours && !/^m\d+\.f\d/.test(clerp);
  const common = { key, layer, position, value: finite(entry.activation), effect: finite(entry.effect), others: null, heads: "" };
  const influence = kind === "logit" ? finite(entry.token_prob) ?? 0 : 0;
  if (key === "bias") return { ...common, id: "bias", kind: "bias", label: clerp, influence };
  if (kind === "feature") {
    const name = `m${layer}.${neuron ? "n" : "f"}${index}`;
    return { ...common, id: `${name}@${position}`, kind: neuron ? "neuron" : "feature", label: clerp.replace(name, "").trim(), influence };
  }
  const id = key === REST ? REST : kind === "logit" ? `logits.t${index}@${position}` : kind === "embed" ? `embed@${position}` : `m${layer}@${position}`;
  return { ...common, id, kind, label: kind === "logit" ? clerp.replace(/^Output /, "") : clerp, influence };
}

/* Links by the places of their ends. Where a feature of block 0 and an error have one id, the order of a target's links
decides, features first, and the block does, as an error has no link to earlier ones. */
function linksOf(links: Json[], nodes: GraphNode[], places: Map<string, number[]>): Link[] {
  const ends = links.map((link, number): Link => {
    const [from, to] = [places.get(String(link.source)), places.get(String(link.target))];
    if (!from || !to) throw new Error(`Link ${number} has an end ${JSON.stringify(from ? link.target : link.source)} that is no node.`);
    const weight = finite(link.weight);
    if (weight === null) throw new Error(`Link ${number} has the weight ${JSON.stringify(link.weight)}.`);
    return [from.length > 1 ? -1 : from[0]!, to.find((i) => nodes[i]!.kind !== "mlp") ?? to[0]!, weight];
  });
  const unclear = [...ends.keys()].filter((number) => ends[number]![0] < 0);
  if (!unclear.length) return ends;
  const into = Map.groupBy(ends.keys(), (number) => ends[number]![1]);
  for (const number of unclear) {
    const called = places.get(String(links[number]!.source))!;
    const error = called.find((i) => nodes[i]!.kind === "mlp") ?? called.at(-1)!;
    const feature = called.find((i) => i !== error) ?? called[0]!;
    const target = ends[number]![1];
    const others = into.get(target)!.filter((i) => ends[i]![0] >= 0);
    const early = nodes[target]!.layer <= nodes[error]!.layer;
    const later = others.some((i) => i > number && isUnit(nodes[ends[i]![0]]!));
    const earlier = others.some((i) => i < number && (nodes[ends[i]![0]]!.kind === "mlp" || ends[i]![0] === feature));
    ends[number]![0] = early || later || !earlier ? feature : error;
  }
  return ends;
}

/* The JSON of a graph with what is pinned and grouped; of a graph that was opened, its own with these alone changed. */
export function written(graph: Graph, choice: Choice, clicked: number): string {
  const { nodes, edges, metadata } = graph;
  const key = (i: number) => nodes[i]!.key;
  const qParams = {
    ...graph.source?.qParams,
    pinnedIds: choice.pinned.map(key),
    supernodes: choice.groups.map((group) => [group.name, ...group.members.map(key)]),
    linkType: "both",
    clickedId: clicked < 0 ? "" : key(clicked),
    sg_pos: "",
  };
  if (graph.source) return JSON.stringify({ ...graph.source, qParams });
  const order = [...nodes.keys()].sort((a, b) => nodes[b]!.influence - nodes[a]!.influence);
  const share = (i: number) => (nodes[i]!.kind === "logit" ? 0 : nodes[i]!.influence);
  const whole = order.reduce((sum, i) => sum + share(i), 0) || 1;
  const ranks = new Map<number, number>();
  order.reduce((sum, i) => (ranks.set(i, (sum + share(i)) / whole), sum + share(i)), 0);
  const rest = nodes.flatMap((node, i) => (node.others ? [{ source: REST, target: key(i), weight: node.others }] : []));
  const error = { node_id: REST, feature: -1, layer: "E", ctx_idx: 0, feature_type: "mlp reconstruction error", jsNodeId: `${REST}-0`, clerp: "all sources that are not drawn" };
  const listed = nodes.map((node, i) => entryOf(node, ranks.get(i)!, graph));
  const logits = nodes.findIndex((node) => node.kind === "logit");
  const before = logits < 0 ? listed.length : logits;
  const links = edges.map(([source, target, weight]) => ({ source: key(source), target: key(target), weight }));
  return JSON.stringify({ metadata, qParams, nodes: [...listed.slice(0, before), ...(rest.length ? [error] : []), ...listed.slice(before)], links: [...links, ...rest] });
}

function entryOf(node: GraphNode, rank: number, graph: Graph): Json {
  const common = { node_id: node.key, ctx_idx: node.position, run_idx: 0, reverse_ctx_idx: 0 };
  const [layer = "", index = ""] = node.key.split("_");
  if (node.kind === "embed") return { ...common, feature: node.position, layer: "E", feature_type: "embedding", jsNodeId: `E_${index}-${node.position}`, clerp: node.label, influence: rank };
  if (node.kind === "logit") {
    const text = node.label.includes("(p=") ? node.label : `${node.label} (p=${node.influence.toFixed(3)})`;
    const first = graph.nodes.find((other) => other.kind === "logit") === node;
    return { ...common, feature: Number(index), layer, feature_type: "logit", clerp: `Output ${text}`, jsNodeId: `L_${index}-${node.position}`, token_prob: node.influence, is_target_logit: first, activation: node.value };
  }
  if (!isUnit(node)) return { ...common, feature: -1, layer: node.kind === "bias" ? "E" : String(node.layer), feature_type: "mlp reconstruction error", clerp: node.label || node.id, jsNodeId: `${node.key}-0`, influence: rank };
  const [a, b] = [node.layer, Number(index)];
  const name = node.id.split("@")[0]!;
  return { ...common, feature: ((a + b) * (a + b + 1)) / 2 + b, layer, feature_type: FEATURE, jsNodeId: `${layer}_${index}-0`, clerp: node.label ? `${name} ${node.label}` : name, influence: rank, activation: node.value, effect: node.effect };
}

const xml = (text: string) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\ud800-\udfff\ufffe\uffff]/gu, "\ufffd").replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

/* Nodes and some edges as GraphML. */
export function graphml(graph: Graph, edges: number[]): string {
  const types: [string, string, string][] = [
    ["label", "node", "string"],
    ["layer", "node", "int"],
    ["position", "node", "int"],
    ["influence", "node", "double"],
    ["weight", "edge", "double"],
  ];
  const keys = types.map(([name, of, type]) => `<key id="${name}" for="${of}" attr.name="${name}" attr.type="${type}"/>`);
  const data = (name: string, value: string | number) => `<data key="${name}">${xml(String(value))}</data>`;
  const alive = new Set(edges.flatMap((i) => graph.edges[i]!.slice(0, 2)));
  const nodes = [...alive].sort((a, b) => a - b).map((i) => graph.nodes[i]!);
  const node = (one: GraphNode) => `<node id="${xml(one.id)}">${data("label", one.label)}${data("layer", one.layer)}${data("position", one.position)}${data("influence", one.influence)}</node>`;
  const edge = (i: number) => {
    const [source, target, weight] = graph.edges[i]!;
    return `<edge source="${xml(graph.nodes[source]!.id)}" target="${xml(graph.nodes[target]!.id)}">${data("weight", weight)}</edge>`;
  };
  return `<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">${keys.join("")}<graph edgedefault="directed">\n${[...nodes.map(node), ...edges.map(edge)].join("\n")}\n</graph></graphml>\n`;
}
