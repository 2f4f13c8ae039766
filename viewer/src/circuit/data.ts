/* What the page carries of a circuit, and the edges of a set as typed columns, strongest first. */
import type { Num } from "../shared/numbers";

export type Range = [Num, Num, Num];
export type Measured = [edges: number, share: Range, random: Range | null];
export type Columns = {
  name: string;
  about: string;
  unit: string;
  decimals: number;
  measured: Measured[];
  from: number[];
  to: number[];
  source: number[];
  target: number[];
  kind: number[];
  score: Num[];
  low: Num[];
  high: Num[];
  also: Num[][];
};
export type Geometry = {
  rows: number[];
  columns: number[];
  mlp: [x: number, lift: number] | null;
  ends: Record<string, [number, number]>;
  brackets: [left: number, right: number][];
  shared: number[][];
  drop: number;
  reach: number;
  cell: [number, number];
  left: number;
  right: number;
  size: [width: number, height: number];
};
export type Group = { name: string; members: string[] };
export type Data = {
  grid: Geometry;
  neurons: string[][];
  names: string[];
  sets: Columns[];
  groups: [string, string[]][];
  also: string[];
  strongest: number;
};

export const KINDS = ["query", "key", "value", "MLP", "logits"];

/* Block in which a node stands; one before the first for embeddings, one after the last for the logits. */
export function layerOf(name: string, layers: number): number {
  const [, kind, number] = /^([amx])(\d+)/.exec(name) ?? [];
  if (!kind) return name === "logits" ? layers : -1;
  return Number(number) - (kind === "x" ? 1 : 0);
}

export const isHead = (name: string) => /^a\d+\.h\d+$/.test(name);
export const isBracket = (name: string) => /^a\d+\.kv\d+$/.test(name);
export const isInner = (name: string) => /^[mx]\d+\.[^.]+$/.test(name) && !name.endsWith(".in");

/* The bracket that a query head shares with others, by name. */
export function bracketOf(name: string, grid: Geometry): string | null {
  const [, layer, head] = /^a(\d+)\.h(\d+)$/.exec(name) ?? [];
  const kv = head === undefined ? -1 : grid.shared.findIndex((group) => group.includes(Number(head)));
  return kv < 0 ? null : `a${layer}.kv${kv}`;
}

/* The query heads of a bracket. */
export function headsOf(name: string, grid: Geometry): string[] {
  const [, layer, kv] = /^a(\d+)\.kv(\d+)$/.exec(name) ?? [];
  return kv === undefined ? [] : (grid.shared[Number(kv)] ?? []).map((head) => `a${layer}.h${head}`);
}

export function describe(name: string): string {
  if (isBracket(name)) return "a key/value head";
  if (name === "logits") return "the model's output";
  if (isHead(name)) return "an attention head";
  if (isInner(name)) return /\.n\d/.test(name) ? "a neuron" : /\.f\d/.test(name) ? "a feature" : "what dictionaries leave over";
  return /^m\d/.test(name) ? "an MLP" : "an embedding";
}

/* Sum of |score| over the edges that touch each node, by its number. */
export function strengths(set: Columns, nodes: number): Float64Array {
  const sums = new Float64Array(nodes);
  set.score.forEach((score, i) => {
    const size = Math.abs(score ?? 0);
    sums[set.source[i]!]! += size;
    sums[set.target[i]!]! += size;
  });
  return sums;
}

/* Groups as a text for the address: name:a1.h2,a3.h4;... */
export const writeGroups = (groups: Group[]) => groups.map(({ name, members }) => `${encodeURIComponent(name.toWellFormed())}:${members.join(",")}`).join(";");

export function readGroups(text: string): Group[] {
  return text
    .split(";")
    .filter((part) => part.includes(":"))
    .map((part) => {
      const [name, members] = part.split(":") as [string, string];
      return { name: decode(name), members: members.split(",").filter(Boolean) };
    });
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}
