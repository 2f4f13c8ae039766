/* Where the nodes of an attribution graph are: tokens across, blocks up, dots side by side in the cell of both. */
import { isUnit, type Graph, type GraphNode } from "./graph";

export const ROW = 19;
const [LEFT, HEAD, FOOT] = [38, 122, 96];
const [COLUMN, STEP, WIDEST] = [46, 9.5, 34];
const TOGETHER = 1400; // of all columns, unless so many tokens need more: dots then lie closer together

export type Layout = {
  x: Float64Array;
  y: Float64Array;
  radius: Float64Array;
  width: number;
  height: number;
  ground: number;
  columns: { left: number; width: number }[];
  row: (layer: number) => number;
};

export function layout(graph: Graph): Layout {
  const { nodes, tokens, layers } = graph;
  const cells = new Map<string, number[]>();
  nodes.forEach((node, i) => {
    if (isOutside(node)) return;
    const name = `${node.layer} ${node.position}`;
    cells.set(name, [...(cells.get(name) ?? []), i]);
  });
  const most = new Map<number, number>();
  for (const some of cells.values()) most.set(nodes[some[0]!]!.position, Math.max(some.length, most.get(nodes[some[0]!]!.position) ?? 1));
  const wanted = tokens.map((_, position) => Math.min(WIDEST, most.get(position) ?? 1) * STEP + 12 - COLUMN);
  const more = wanted.reduce((sum, width) => sum + Math.max(0, width), 0);
  const room = Math.min(1, Math.max(0, TOGETHER - tokens.length * COLUMN) / Math.max(1, more));
  let end = LEFT;
  const columns = wanted.map((extra) => {
    const width = COLUMN + room * Math.max(0, extra);
    end += width;
    return { left: end - width, width };
  });
  const width = end + 60;
  const ground = HEAD + ROW * (layers + 1);
  const row = (layer: number) => ground - ROW * (layer + 1);
  const [x, y] = [new Float64Array(nodes.length).fill(LEFT - 16), new Float64Array(nodes.length).fill(ground)];
  for (const some of cells.values()) {
    const { layer, position } = nodes[some[0]!]!;
    const column = columns[position] ?? { left: LEFT, width: COLUMN };
    const step = layer < layers ? Math.min(STEP, (column.width - 12) / some.length) : Math.max(STEP, 13);
    let start = column.left + column.width / 2 - (step * (some.length - 1)) / 2;
    if (layer === layers) start = Math.max(LEFT, Math.min(start, width - 50 - step * (some.length - 1)));
    some.forEach((i, k) => {
      x[i] = start + step * k;
      y[i] = row(layer);
    });
  }
  const largest = Math.max(...nodes.map((node) => (isUnit(node) ? node.influence : 0)), 1e-12);
  const radius = Float64Array.from(nodes, (node) => (isUnit(node) || node.kind === "mlp" ? 2.2 + 3 * Math.sqrt(Math.min(1, node.influence / largest)) : 4));
  return { x, y, radius, width, height: ground + FOOT, ground, columns, row };
}

/* Biases and the sum of what is not drawn belong to no token. */
const isOutside = (node: GraphNode) => node.kind === "bias" || (node.kind === "mlp" && node.layer < 0);

/* The curve of an edge, as the numbers of a Bezier curve. */
export function curve({ x, y }: Layout, source: number, target: number): [number, number, number, number, number, number, number, number] {
  const [ax, ay, bx, by] = [x[source]!, y[source]!, x[target]!, y[target]!];
  const pull = Math.max(8, 0.4 * (ay - by));
  return [ax, ay, ax, ay - pull, bx, by + pull, bx, by];
}

/* The node nearest to a point, of those that are shown; -1 for none near enough. */
export function nearest(places: Layout, shown: Uint8Array, x: number, y: number, within = 9): number {
  let [best, distance] = [-1, within * within];
  for (let i = 0; i < shown.length; i++) {
    if (!shown[i]) continue;
    const apart = (places.x[i]! - x) ** 2 + (places.y[i]! - y) ** 2;
    if (apart < distance) [best, distance] = [i, apart];
  }
  return best;
}

/* The node that an arrow key leads to from another: the nearest in that direction, sideways first in its own row. */
export function beside(places: Layout, shown: Uint8Array, from: number, across: number, up: number): number {
  let [best, cost] = [-1, Infinity];
  for (let i = 0; i < shown.length; i++) {
    const [dx, dy] = [places.x[i]! - places.x[from]!, places.y[from]! - places.y[i]!];
    const [along, aside] = across ? [dx * across, Math.abs(dy)] : [dy * up, Math.abs(dx)];
    if (!shown[i] || i === from || along <= 0) continue;
    const value = along + aside * (across ? 8 : 2);
    if (value < cost) [best, cost] = [i, value];
  }
  return best;
}
