/* What is drawn: where nodes are, with MLPs folded and groups as boxes, and the edges between what is drawn. */
import { bracketOf, headsOf, isBracket, isHead, isInner, layerOf, strengths, type Columns, type Data, type Group } from "./data";

const BOX_COLUMN = 190;

/* Nodes by number: those of the data's names, then the groups. */
export type Nodes = {
  names: string[];
  /* Which node each name is drawn as. */
  shownAs: Int32Array;
  /* Whether a node is drawn and touches an edge of the set. */
  live: Uint8Array;
  x: Float64Array;
  y: Float64Array;
  /* Half its height, above and below which edges end. */
  half: Float64Array;
  /* Square root of its strength over the largest: 0 to 1. */
  share: Float64Array;
  strength: Float64Array;
  layer: Float64Array;
  /* Boxes by number of node, their half widths. */
  boxes: Map<number, number>;
  width: number;
  height: number;
  /* How far the grid is moved to the right, to make room for boxes. */
  offset: number;
  /* The width that each neuron or feature has that is folded out. */
  innerCell: number;
};

/* Edges between drawn nodes, largest first. */
export type Edges = {
  source: Int32Array;
  target: Int32Array;
  kind: Uint8Array;
  score: Float64Array;
  /* Square root of |score| over the largest: 0 to 1. */
  weight: Float32Array;
  /* Its first edge in the set, and how many of the set it stands for. */
  first: Int32Array;
  count: Int32Array;
};

export function placed(data: Data, set: Columns, groups: Group[], open: Set<number>): Nodes {
  const names = [...data.names, ...groups.map((group) => group.name)];
  const number = new Map(data.names.map((name, i) => [name, i]));
  const shownAs = shownNodes(data, groups, open, number);
  const sums = strengths(set, names.length);
  const strength = new Float64Array(names.length);
  const live = new Uint8Array(names.length);
  data.names.forEach((_, i) => (strength[shownAs[i]!]! += sums[i]!));
  for (const ends of [set.source, set.target]) for (const i of ends) live[shownAs[i]!] = 1;
  const nodes = positions(data, names, groups, open);
  let top = 0;
  names.forEach((name, i) => {
    if (live[i] && (isHead(name) || isBracket(name) || isInner(name) || /^m\d+$/.test(name))) top = Math.max(top, strength[i]!);
  });
  const share = strength.map((value) => (top ? Math.min(1, Math.sqrt(value / top)) : 0));
  const half = new Float64Array(names.length);
  const inner = 0.42 * nodes.innerCell;
  names.forEach((name, i) => {
    const most = isInner(name) ? Math.min(data.grid.reach, inner) : data.grid.reach;
    half[i] = nodes.boxes.has(i) ? 12 : data.grid.ends[name] ? 10 : isBracket(name) ? 0 : most * (0.3 + 0.7 * share[i]!);
  });
  const layer = Float64Array.from(names, (name, i) => (nodes.boxes.has(i) ? NaN : layerOf(name, data.grid.rows.length)));
  if (groups.length) spread(nodes, shownAs, data.names.length);
  return { names, shownAs, live, share, strength, half, layer, ...nodes };
}

/* Neurons are drawn as their MLP unless it is open, members as their group, and a bracket with all its grouped heads. */
function shownNodes(data: Data, groups: Group[], open: Set<number>, number: Map<string, number>): Int32Array {
  const shownAs = Int32Array.from(data.names, (_, i) => i);
  const layers = data.grid.rows.length;
  data.names.forEach((name, i) => {
    const layer = layerOf(name, layers);
    const mlp = number.get(`m${layer}`);
    if (isInner(name) && !open.has(layer) && mlp !== undefined) shownAs[i] = mlp;
  });
  const groupOf = new Map(groups.flatMap((group, g) => group.members.map((member): [string, number] => [member, data.names.length + g])));
  const byName = (name: string) => groupOf.get(name);
  const before = shownAs.slice();
  data.names.forEach((name, i) => {
    const group = byName(name) ?? byName(data.names[before[i]!]!);
    if (group !== undefined) shownAs[i] = group;
    if (!isBracket(name)) return;
    const holders = new Set(headsOf(name, data.grid).filter((head) => number.has(head) || groupOf.has(head)).map(byName));
    const [only] = holders;
    if (holders.size === 1 && only !== undefined) shownAs[i] = only;
  });
  return shownAs;
}

function positions(data: Data, names: string[], groups: Group[], open: Set<number>) {
  const { grid } = data;
  const offset = groups.length ? BOX_COLUMN : 0;
  const x = new Float64Array(names.length);
  const y = new Float64Array(names.length);
  const most = Math.max(0, ...[...open].map((layer) => data.neurons[layer]?.length ?? 0));
  const innerCell = Math.min(22, Math.max(9, 420 / Math.max(1, most)));
  const place = new Map(data.neurons.flatMap((row) => row.map((name, i): [string, number] => [name, i])));
  const [mlp, lift] = grid.mlp ?? [0, 0];
  names.slice(0, data.names.length).forEach((name, i) => {
    const layer = layerOf(name, grid.rows.length);
    const row = grid.rows[layer] ?? 0;
    const end = grid.ends[name];
    const [, kind, index] = /\.(h|kv)(\d+)$/.exec(name) ?? [];
    if (end) [x[i], y[i]] = end;
    else if (kind === "h") [x[i], y[i]] = [grid.columns[Number(index)]!, row];
    else if (kind === "kv") {
      const [left, right] = grid.brackets[Number(index)] ?? [0, 0];
      [x[i], y[i]] = [(left + right) / 2, row + grid.drop];
    } else if (isInner(name)) {
      x[i] = mlp + 0.5 * grid.cell[0] + (0.5 + (place.get(name) ?? 0)) * innerCell;
      y[i] = row - lift - (name.startsWith("x") ? 0.3 * grid.cell[1] : 0);
    } else [x[i], y[i]] = [mlp, row - lift];
    x[i]! += offset;
  });
  const boxes = new Map(groups.map((group, g): [number, number] => [data.names.length + g, Math.min(86, 3.4 * group.name.length + 20)]));
  const width = grid.size[0] + offset + most * innerCell;
  return { x, y, boxes, offset, width, height: grid.size[1], innerCell };
}

/* Boxes stand to the left of the grid at the mean height of their members, none over another. */
function spread(nodes: { x: Float64Array; y: Float64Array; boxes: Map<number, number>; height: number }, shownAs: Int32Array, named: number) {
  const heights = new Map<number, number[]>();
  for (let i = 0; i < named; i++) if (nodes.boxes.has(shownAs[i]!)) (heights.get(shownAs[i]!) ?? heights.set(shownAs[i]!, []).get(shownAs[i]!)!).push(nodes.y[i]!);
  const mean = (values: number[] = [nodes.height / 2]) => values.reduce((a, b) => a + b, 0) / values.length;
  const order = [...nodes.boxes.keys()].sort((a, b) => mean(heights.get(a)) - mean(heights.get(b)));
  let above = 14;
  order.forEach((box, i) => {
    const below = nodes.height - 20 - (order.length - 1 - i) * 32;
    nodes.y[box] = Math.min(below, Math.max(above + 32, mean(heights.get(box))));
    above = nodes.y[box]!;
    nodes.x[box] = BOX_COLUMN / 2;
  });
}

/* The first edges of a set into the wanted kinds, as many as `most`; those of a group or folded MLP are added up. */
export function between(set: Columns, nodes: Nodes, kinds: Set<number>, most: number): Edges {
  const length = Math.min(most, set.score.length);
  const made: Edges = {
    source: new Int32Array(length),
    target: new Int32Array(length),
    kind: new Uint8Array(length),
    score: new Float64Array(length),
    weight: new Float32Array(0),
    first: new Int32Array(length),
    count: new Int32Array(length),
  };
  const merged = new Places(length);
  let [taken, used, summed] = [0, 0, false];
  for (let i = 0; i < set.score.length && taken < most; i++) {
    const kind = set.kind[i]!;
    if (!kinds.has(kind)) continue;
    taken++;
    const [source, target] = [nodes.shownAs[set.source[i]!]!, nodes.shownAs[set.target[i]!]!];
    if (source === target) continue;
    if (source !== set.source[i] || target !== set.target[i]) {
      const at = merged.of((source * nodes.names.length + target) * 5 + kind, used);
      if (at !== used) {
        made.score[at]! += set.score[i] ?? 0;
        made.count[at]! += 1;
        summed = true;
        continue;
      }
    }
    made.source[used] = source;
    made.target[used] = target;
    made.kind[used] = kind;
    made.score[used] = set.score[i] ?? 0;
    made.first[used] = i;
    made.count[used++] = 1;
  }
  return largestFirst(made, used, summed);
}

/* The first `used` edges with their weights; sums come in the order of their weights, to a thousandth. */
function largestFirst(made: Edges, used: number, summed: boolean): Edges {
  let top = 0;
  for (let i = 0; i < used; i++) top = Math.max(top, Math.abs(made.score[i]!));
  const weigh = (score: number) => (top ? Math.sqrt(Math.abs(score) / top) : 0);
  const cut = <T extends Int32Array | Uint8Array | Float64Array>(column: T) => column.subarray(0, used) as T;
  const weight = Float32Array.from(cut(made.score), weigh);
  const all = { ...made, weight };
  for (const name of ["source", "target", "kind", "score", "first", "count"] as const) all[name] = cut(made[name] as Int32Array) as never;
  if (!summed) return all;
  const starts = new Int32Array(1002);
  const level = (i: number) => 1000 - Math.round(1000 * weight[i]!);
  for (let i = 0; i < used; i++) starts[level(i) + 1]! += 1;
  for (let k = 1; k < starts.length; k++) starts[k]! += starts[k - 1]!;
  const order = new Int32Array(used);
  for (let i = 0; i < used; i++) order[starts[level(i)]!++] = i;
  const sorted = <T extends Int32Array | Uint8Array | Float64Array | Float32Array>(column: T) => {
    const moved = column.slice() as T;
    for (let to = 0; to < used; to++) moved[to] = column[order[to]!]!;
    return moved;
  };
  return {
    source: sorted(all.source),
    target: sorted(all.target),
    kind: sorted(all.kind),
    score: sorted(all.score),
    weight: sorted(weight),
    first: sorted(all.first),
    count: sorted(all.count),
  };
}

/* Numbers by numbers, in one table: a Map of so many takes several times as long. */
class Places {
  private keys: Float64Array;
  private values: Int32Array;

  constructor(most: number) {
    const size = 2 ** Math.ceil(Math.log2(2 * most + 2));
    this.keys = new Float64Array(size).fill(-1);
    this.values = new Int32Array(size);
  }

  /* What is kept for a key; a new one keeps `value`. */
  of(key: number, value: number): number {
    const last = this.keys.length - 1;
    let slot = Math.imul((key % 4294967291) | 0, 0x9e3779b1) & last;
    while (this.keys[slot] !== -1 && this.keys[slot] !== key) slot = (slot + 1) & last;
    if (this.keys[slot] === -1) {
      this.keys[slot] = key;
      this.values[slot] = value;
    }
    return this.values[slot]!;
  }
}

/* By node: the edges that come in and go out, largest first. */
export class Adjacent {
  private starts: [Int32Array, Int32Array];
  private entries: [Int32Array, Int32Array];

  constructor(edges: Edges, nodes: number) {
    const listed = (ends: Int32Array): [Int32Array, Int32Array] => {
      const starts = new Int32Array(nodes + 1);
      for (const node of ends) starts[node + 1]! += 1;
      for (let i = 1; i <= nodes; i++) starts[i]! += starts[i - 1]!;
      const next = starts.slice();
      const entries = new Int32Array(ends.length);
      ends.forEach((node, i) => (entries[next[node]!++] = i));
      return [starts, entries];
    };
    const [into, out] = [listed(edges.target), listed(edges.source)];
    this.starts = [into[0], out[0]];
    this.entries = [into[1], out[1]];
  }

  private list = (side: 0 | 1, node: number) => [...this.entries[side].subarray(this.starts[side][node], this.starts[side][node + 1])];

  /* Into any of some nodes. */
  incoming = (nodes: number[]) => nodes.flatMap((node) => this.list(0, node)).sort((a, b) => a - b);
  outgoing = (node: number) => this.list(1, node);
}

/* The nodes whose inputs are those of a node: itself, and of a query head the bracket that it shares. */
export function readers(node: number, nodes: Nodes, data: Data): number[] {
  const bracket = bracketOf(nodes.names[node]!, data.grid);
  const shared = bracket === null ? -1 : data.names.indexOf(bracket);
  return shared < 0 || nodes.shownAs[shared] !== shared ? [node] : [node, shared];
}

export type Curve = [number, number, number, number, number, number, number, number];

/* The curve of an edge: upwards from its writer, arriving from below; to an MLP of the same block sideways. */
export function curve(nodes: Nodes, data: Data, s: number, t: number, kind: number): Curve {
  const [cell, grid] = [data.grid.cell[0], data.grid];
  const [x0, y0] = [nodes.x[s]!, nodes.y[s]! - nodes.half[s]!];
  const [x3, y3] = arrival(nodes, data, t, kind);
  if (nodes.layer[s] === nodes.layer[t]) {
    const lift = Math.min(y0, nodes.y[t]!) - 7;
    return [x0, y0, x0 + 8, lift, nodes.x[t]! - 24, lift, nodes.x[t]! - nodes.half[t]!, nodes.y[t]!];
  }
  const rise = y0 - y3;
  const boxed = nodes.boxes.has(s) || nodes.boxes.has(t);
  if (nodes.boxes.has(s) && nodes.boxes.has(t)) {
    const aside = Math.max(nodes.boxes.get(s)!, nodes.boxes.get(t)!, 30) + 0.04 * Math.abs(rise); // past the boxes between
    return [x0, y0, x0 + aside, y0 - 0.3 * rise - 8, x3 + aside, y3 + 0.3 * rise + 8, x3, y3];
  }
  const near = boxed ? 0 : Math.max(0, 1 - Math.abs(x0 - x3) / (0.9 * cell));
  const outside = grid.mlp !== null && x0 > grid.mlp[0] + nodes.offset - 1;
  const bow = near * (outside ? Math.min(118, 8 + 0.2 * rise) : Math.min(0.62 * cell, 5 + 0.2 * rise));
  const pull = boxed ? Math.max(26, 0.36 * rise) : 0.36 * rise;
  return [x0, y0, x0 + bow, y0 - pull, x3 + bow, y3 + pull, x3, y3];
}

/* Where an edge meets its reader: keys at the left, values at the right third. */
function arrival(nodes: Nodes, data: Data, t: number, kind: number): [number, number] {
  const side = kind === 1 ? -1 : kind === 2 ? 1 : 0;
  const name = nodes.names[t]!;
  if (nodes.boxes.has(t)) return [nodes.x[t]! + (side * nodes.boxes.get(t)!) / 3, nodes.y[t]! + nodes.half[t]!];
  if (!isBracket(name)) return [nodes.x[t]! + 0.5 * side * nodes.half[t]!, nodes.y[t]! + nodes.half[t]!];
  const [left, right] = data.grid.brackets[Number(name.split("kv")[1])]!;
  return [nodes.x[t]! + (side * (right - left)) / 6, nodes.y[t]!];
}
