/* Pinned nodes and groups as boxes, one row a block, with what each brings the others: edges of members summed. */
import { useMemo } from "preact/hooks";
import { fixed } from "../shared/numbers";
import { hideTip, showTip } from "../shared/page";
import type { Choice, Graph, Group } from "./graph";
import { hue, ring } from "./picture";

const [WIDTH, HEIGHT, GAP, LEVEL, LETTERS] = [172, 38, 14, 46, 25];

export const DRAWN = 40; // arrows, unless a box is chosen

export type Box = { name: string; about: string; members: number[]; group: number };
export type Arrow = { from: number; to: number; weight: number };

/* The groups, and every pinned node that is in none. */
export function boxesOf(graph: Graph, choice: Choice): Box[] {
  const inside = new Set(choice.groups.flatMap((group) => group.members));
  const groups = choice.groups.map(({ name, members }: Group, group) => ({ name, about: `${members.length} node${members.length > 1 ? "s" : ""}`, members, group }));
  const alone = choice.pinned.filter((i) => !inside.has(i)).map((i) => ({ name: graph.nodes[i]!.label || graph.nodes[i]!.id, about: graph.nodes[i]!.id, members: [i], group: -1 }));
  return [...groups, ...alone];
}

/* By pair of boxes, the sum of all the graph's edges from members of the first to members of the second. */
export function arrowsOf(graph: Graph, boxes: Box[]): Arrow[] {
  const of = new Map(boxes.flatMap((box, b) => box.members.map((i) => [i, b] as const)));
  const sums = new Map<string, Arrow>();
  for (const [source, target, weight] of graph.edges) {
    const [from, to] = [of.get(source), of.get(target)];
    if (from === undefined || to === undefined || from === to) continue;
    const arrow = sums.get(`${from} ${to}`) ?? { from, to, weight: 0 };
    arrow.weight += weight;
    sums.set(`${from} ${to}`, arrow);
  }
  return [...sums.values()].sort((a, b) => Math.abs(a.weight) - Math.abs(b.weight));
}

const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
const cut = (text: string) => (text.length > LETTERS ? `${text.slice(0, LETTERS - 1)}\u2026` : text);

/* Rows by the blocks of the boxes, earliest lowest; in a row by token. Full rows are broken. */
function placed(graph: Graph, boxes: Box[], across: number) {
  const layer = (box: Box) => mean(box.members.map((i) => graph.nodes[i]!.layer));
  const position = (box: Box) => mean(box.members.map((i) => graph.nodes[i]!.position));
  const kinds = (box: Box) => (layer(box) < 0 ? 0 : layer(box) >= graph.layers ? 2 : 1);
  const order = [...boxes.keys()].sort((a, b) => kinds(boxes[a]!) - kinds(boxes[b]!) || layer(boxes[a]!) - layer(boxes[b]!));
  const rows: number[][] = [];
  for (const b of order) {
    const row = rows.at(-1);
    const same = row && kinds(boxes[row[0]!]!) === kinds(boxes[b]!) && (kinds(boxes[b]!) !== 1 || layer(boxes[b]!) - layer(boxes[row[0]!]!) < 0.5);
    if (row && same && row.length < across) row.push(b);
    else rows.push([b]);
  }
  const width = Math.max(1, ...rows.map((row) => row.length)) * (WIDTH + GAP) + GAP;
  const height = rows.length * (HEIGHT + LEVEL) - LEVEL + 2 * GAP;
  const at = new Map<number, { x: number; y: number }>();
  rows.forEach((row, r) => {
    const start = (width - row.length * (WIDTH + GAP) + GAP) / 2;
    row.sort((a, b) => position(boxes[a]!) - position(boxes[b]!)).forEach((b, k) => at.set(b, { x: start + k * (WIDTH + GAP), y: height - GAP - HEIGHT - r * (HEIGHT + LEVEL) }));
  });
  return { at, width, height };
}

type Props = { graph: Graph; boxes: Box[]; arrows: Arrow[]; chosen: number; choose: (box: number) => void };

export function Boxes({ graph, boxes, arrows, chosen, choose }: Props) {
  const across = innerWidth < 600 ? 2 : 6;
  const { at, width, height } = useMemo(() => placed(graph, boxes, across), [graph, boxes, across]);
  const most = Math.max(...arrows.map((arrow) => Math.abs(arrow.weight)), 1e-12);
  const shown = chosen < 0 ? arrows.slice(-DRAWN) : arrows.filter((arrow) => arrow.from === chosen || arrow.to === chosen);
  return (
    <svg class="boxes" viewBox={`0 0 ${width} ${height}`} width={width} height={height} font-size="11" role="group" aria-label="Pinned nodes and groups, earlier blocks lower">
      <rect class="backdrop" width={width} height={height} fill="var(--panel)" />
      <g fill="none">
        {shown.map((arrow) => {
          const [a, b] = [at.get(arrow.from)!, at.get(arrow.to)!];
          const [ax, bx] = [a.x + WIDTH / 2, b.x + WIDTH / 2];
          const pull = Math.max(16, 0.45 * Math.abs(a.y - b.y));
          const said = `${boxes[arrow.from]!.name} to ${boxes[arrow.to]!.name}: ${fixed(arrow.weight, 3)}`;
          return (
            <path key={`${arrow.from} ${arrow.to}`} d={`M${ax} ${a.y}C${ax} ${a.y - pull} ${bx} ${b.y + HEIGHT + pull} ${bx} ${b.y + HEIGHT}`} stroke={`var(--${hue(arrow.weight)})`} stroke-width={(0.6 + 4 * Math.sqrt(Math.abs(arrow.weight) / most)).toFixed(2)} stroke-opacity="0.7">
              <title>{said}</title>
            </path>
          );
        })}
      </g>
      {boxes.map((box, b) => {
        const { x, y } = at.get(b)!;
        const press = (event: KeyboardEvent) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), choose(b));
        return (
          <g key={b} class="node" role="button" tabIndex={0} aria-pressed={chosen === b} onClick={() => choose(b)} onKeyDown={press} onPointerMove={(event) => showTip(box.name, event.clientX, event.clientY)} onPointerLeave={hideTip}>
            <rect class="rim" x={x} y={y} width={WIDTH} height={HEIGHT} rx="7" fill="var(--panel)" stroke={`var(--${chosen === b ? "ink" : box.group < 0 ? "faint" : ring(box.group)})`} stroke-width={chosen === b || box.group >= 0 ? 2 : 1} />
            <text x={x + WIDTH / 2} y={y + 16} text-anchor="middle" fill="var(--ink)">
              {cut(box.name)}{" "}
            </text>
            <text x={x + WIDTH / 2} y={y + 30} text-anchor="middle" fill="var(--muted)" font-size="10">
              {box.about}
            </text>
          </g>
        );
      })}
    </svg>
  );
}
