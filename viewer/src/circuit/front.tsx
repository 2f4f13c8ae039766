/* Faithfulness by size: what the run measured, the random circuits beside it, and where the slider is. */
import { count, type Num } from "../shared/numbers";
import type { Columns, Measured, Range } from "./data";

const [WIDE, HIGH, PAD] = [260, 84, 8];

/* The slider is logarithmic, so that small circuits can be set finely. */
export const STEPS = 1000;
export const toSlider = (edges: number, all: number) => Math.round((STEPS * Math.log(Math.max(1, edges))) / Math.log(Math.max(2, all)));
export const fromSlider = (value: number, all: number) => Math.min(all, Math.round(Math.max(2, all) ** (value / STEPS)));

/* The measured size that is nearest to a number of edges, as a ratio. */
export function nearest(measured: Measured[], edges: number): Measured | undefined {
  const away = (point: Measured) => Math.abs(Math.log(point[0] / Math.max(1, edges)));
  return [...measured].sort((a, b) => away(a) - away(b))[0];
}

const share = (value: Num | undefined) => (value == null ? "n/a" : value.toFixed(2).replace(/^-(0\.00)$/, "$1").replace("-", "\u2212"));
const range = ([value, low, high]: Range) => `${share(value)}${low === null ? "" : ` [${share(low)}, ${share(high)}]`}`;

export function saidOf(point: Measured, edges: number): string {
  const at = point[0] === edges ? "measured here" : `nearest measured: ${count(point[0])} edges`;
  const random = point[2] ? `; random circuits ${share(point[2][0])} (${share(point[2][1])} to ${share(point[2][2])})` : "";
  return `${at}, faithfulness ${range(point[1])}${random}`;
}

export function Front({ set, edges, pick }: { set: Columns; edges: number; pick: (edges: number) => void }) {
  const all = set.score.length;
  if (set.measured.length < 2) return null;
  const x = (size: number) => PAD + ((WIDE - 2 * PAD) * toSlider(size, all)) / STEPS;
  const values = set.measured.flatMap(([, share, random]) => [...share, ...(random ?? [])]).filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...values), Math.max(1, ...values)];
  const y = (value: number) => HIGH - PAD - ((HIGH - 2 * PAD) * (value - low)) / (high - low);
  const band = set.measured.filter((point) => point[2]?.[1] != null).map(([size, , random]) => [size, random![1]!, random![2]!] as const);
  const edge = (points: readonly (readonly [number, number])[]) => points.map(([size, value]) => `${x(size).toFixed(1)} ${y(value).toFixed(1)}`).join("L");
  const upper = band.map(([size, , top]) => [size, top] as const);
  const lower = band.map(([size, bottom]) => [size, bottom] as const).reverse();
  const line = set.measured.filter(([, share]) => share[0] !== null).map(([size, share]) => [size, share[0]!] as const);
  return (
    <figure class="front">
      <svg viewBox={`0 0 ${WIDE} ${HIGH}`} width={WIDE} height={HIGH} role="img" aria-label="Faithfulness by number of edges; grey: random circuits">
        {[0, 1].map((level) => (
          <line key={level} x1={PAD} x2={WIDE - PAD} y1={y(level)} y2={y(level)} stroke="var(--line)" />
        ))}
        {band.length > 1 && <path class="random" d={`M${edge([...upper, ...lower])}Z`} fill="var(--chance)" opacity=".3" stroke="var(--chance)" />}
        {band.length === 1 && <line class="random" x1={x(band[0]![0])} x2={x(band[0]![0])} y1={y(band[0]![1])} y2={y(band[0]![2]) - 1} stroke="var(--chance)" stroke-width="6" opacity=".5" />}
        {line.length > 1 && <path d={`M${edge(line)}`} fill="none" stroke="var(--helps)" stroke-width="1.5" />}
        <line x1={x(edges)} x2={x(edges)} y1="2" y2={HIGH - 2} stroke="var(--ink)" stroke-dasharray="2 2" />
        {set.measured.map((point) => (
          <g key={point[0]} class="measured" data-edges={point[0]} onClick={() => pick(point[0])}>
            {point[1][1] !== null && <line x1={x(point[0])} x2={x(point[0])} y1={y(point[1][1])} y2={y(point[1][2]!)} stroke="var(--helps)" />}
            <circle cx={x(point[0])} cy={y(point[1][0] ?? 0)} r="3.5" fill="var(--helps)" />
            <title>{`${count(point[0])} edges: ${saidOf(point, point[0])}`}</title>
          </g>
        ))}
      </svg>
    </figure>
  );
}
