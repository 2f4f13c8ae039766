/* What lies under the pointer: nodes and edges in the squares of a grid. */
import type { Data } from "./data";
import { drawnNodes, halfSize } from "./paint";
import { curve, type Edges, type Nodes } from "./scene";

const SQUARE = 24;
/* How near the pointer has to be to an edge. */
const NEAR = 4;
/* Edges of a part of the index, and milliseconds of a frame that may go into parts. */
const BLOCK = 1000;
const BUDGET = 8;

type Block = { from: number; starts: Int32Array; entries: Int32Array };

const at = (value: number) => Math.floor(value / SQUARE);

export class NodeHits {
  private columns: number;
  private nodesAt = new Map<number, number[]>();

  constructor(private data: Data, private nodes: Nodes) {
    this.columns = Math.ceil(nodes.width / SQUARE) + 1;
    for (const i of drawnNodes(data, nodes)) {
      const [wide, high] = halfSize(data, nodes, i);
      const [x, y] = [nodes.x[i]!, nodes.y[i]!];
      for (let row = at(y - high - 3); row <= at(y + high + 3); row++) {
        for (let column = at(x - wide - 3); column <= at(x + wide + 3); column++) {
          const square = row * this.columns + column;
          (this.nodesAt.get(square) ?? this.nodesAt.set(square, []).get(square)!).push(i);
        }
      }
    }
  }

  /* The node at a place, the nearest where several are; -1 for none. */
  node(x: number, y: number): number {
    let best = -1;
    let least = Infinity;
    for (const i of this.nodesAt.get(at(y) * this.columns + at(x)) ?? []) {
      const [wide, high] = halfSize(this.data, this.nodes, i);
      const [dx, dy] = [Math.abs(x - this.nodes.x[i]!), Math.abs(y - this.nodes.y[i]!)];
      if (dx > wide + 3 || dy > high + 3) continue;
      if (dx + dy < least) [best, least] = [i, dx + dy];
    }
    return best;
  }
}

export class EdgeHits {
  private columns: number;
  private rows: number;
  private blocks: Block[] = [];
  private waiting = 0;

  constructor(private data: Data, private nodes: Nodes, private edges: Edges) {
    this.columns = Math.ceil(nodes.width / SQUARE) + 1;
    this.rows = Math.ceil(nodes.height / SQUARE) + 1;
  }

  /* The largest of the first `count` edges that passes within a few pixels, of those indexed by now; -1 for none. */
  edge(x: number, y: number, count: number, scale = 1): number {
    this.more();
    const near = NEAR / scale;
    const squares = new Set<number>();
    for (const dy of [-near, near]) for (const dx of [-near, near]) squares.add(this.square(x + dx, y + dy));
    for (const { from, starts, entries } of this.blocks) {
      let best = -1;
      for (const square of squares) {
        for (let k = starts[square]!; k < starts[square + 1]!; k++) {
          const i = entries[k]!;
          if (i >= count || (best >= 0 && i >= best)) break; // a square holds its edges largest first
          if (this.passes(i, x, y, near)) best = i;
        }
      }
      if (best >= 0 || from >= count) return best;
    }
    return -1;
  }

  private square(x: number, y: number): number {
    const within = (value: number, most: number) => Math.max(0, Math.min(most - 1, at(value)));
    return within(y, this.rows) * this.columns + within(x, this.columns);
  }

  private path = (i: number) => curve(this.nodes, this.data, this.edges.source[i]!, this.edges.target[i]!, this.edges.kind[i]!);

  private passes(i: number, x: number, y: number, near: number): boolean {
    const path = this.path(i);
    const steps = stepsOf(path);
    let [ax, ay] = [path[0], path[1]];
    for (let step = 1; step <= steps; step++) {
      const [bx, by] = point(path, step / steps);
      const [dx, dy] = [bx - ax, by - ay];
      const along = Math.max(0, Math.min(1, ((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy || 1)));
      if (Math.hypot(ax + along * dx - x, ay + along * dy - y) <= near) return true;
      [ax, ay] = [bx, by];
    }
    return false;
  }

  /* Index some more edges, and the others in the next frames. */
  private more = () => {
    if (this.waiting) return;
    const end = performance.now() + BUDGET;
    do {
      const from = (this.blocks.at(-1)?.from ?? -BLOCK) + BLOCK;
      if (from >= this.edges.score.length) return;
      this.blocks.push(this.block(from, Math.min(from + BLOCK, this.edges.score.length)));
    } while (performance.now() < end);
    this.waiting = setTimeout(() => ((this.waiting = 0), this.more()), BUDGET);
  };

  /* The squares that some edges pass through, by counting: no list for each square. */
  private block(from: number, to: number): Block {
    const starts = new Int32Array(this.columns * this.rows + 1);
    const passed: number[] = [];
    for (let i = from; i < to; i++) {
      const path = this.path(i);
      const steps = stepsOf(path);
      let last = -1;
      for (let step = 0; step <= steps; step++) {
        const square = this.square(...point(path, step / steps));
        if (square !== last) {
          passed.push(square, i);
          starts[square + 1]! += 1;
        }
        last = square;
      }
    }
    for (let square = 1; square < starts.length; square++) starts[square]! += starts[square - 1]!;
    const next = starts.slice();
    const entries = new Int32Array(passed.length / 2);
    for (let k = 0; k < passed.length; k += 2) entries[next[passed[k]!]!++] = passed[k + 1]!;
    return { from, starts, entries };
  }
}

/* Into how many straight pieces a curve is taken: each shorter than a square. */
function stepsOf(path: readonly number[]): number {
  let length = 0;
  for (let k = 2; k < 8; k += 2) length += Math.hypot(path[k]! - path[k - 2]!, path[k + 1]! - path[k - 1]!);
  return Math.ceil(length / SQUARE) + 2;
}

function point(path: readonly number[], t: number): [number, number] {
  const u = 1 - t;
  const [a, b, c, d] = [u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t];
  return [a * path[0]! + b * path[2]! + c * path[4]! + d * path[6]!, a * path[1]! + b * path[3]! + c * path[5]! + d * path[7]!];
}
