/* Trainings at a chosen step: scores of heads, attention in an example, circuits; two trainings stand side by side. */
import type { ComponentChildren } from "preact";
import { useRef } from "preact/hooks";
import { useShown } from "../shared/address";
import { csv, Files } from "../shared/files";
import { count, fixed, sign, type Num } from "../shared/numbers";
import { hideTip, showTip } from "../shared/page";
import type { ViewProps } from "../shared/registry";

type Grid = Num[][];
type Circuit = { edges: [string, Num][]; numbers: Record<string, Num> };
type Run = {
  name: string;
  steps: number[];
  layers: number;
  heads: number;
  numbers: { name: string; values: Num[] }[];
  scores: { name: string; values: (Grid | null)[]; best: string }[];
  tokens: string[];
  attention: { head: string; values: (Grid | null)[] }[];
  circuits: { task: string; values: (Circuit | null)[] }[];
};
type Data = { runs: Run[] };

const CELL = 46;

/* The last value at this step or before it; a run that began later shows its first. */
export function upTo<T>(run: Run, values: (T | null)[], step: number): { step: number; value: T } | null {
  const known = run.steps.flatMap((at, i) => (values[i] == null ? [] : [{ step: at, value: values[i] as T }]));
  return known.findLast((one) => one.step <= step) ?? known[0] ?? null;
}

const said = (words: string) => ({
  onPointerMove: (event: PointerEvent) => showTip(words, event.clientX, event.clientY),
  onPointerLeave: hideTip,
});

export default function Checkpoints({ id, data, title }: ViewProps<Data>) {
  const steps = [...new Set(data.runs.flatMap((run) => run.steps))].sort((a, b) => a - b);
  const measures = [...new Set(data.runs.flatMap((run) => run.scores.map((score) => score.name)))];
  const tasks = [...new Set(data.runs.flatMap((run) => run.circuits.map((circuit) => circuit.task)))];
  const [shown, show] = useShown(id, { step: steps.at(-1)!, score: measures.at(1) ?? measures[0] ?? "", head: "", task: tasks[0] ?? "" });
  const at = Math.max(0, steps.findLastIndex((step) => step <= shown.step));
  const step = steps[at]!;
  return (
    <>
      <div class="controls">
        <label class="slider">
          <span>Step</span>
          <input type="range" min={0} max={steps.length - 1} step={1} value={at} aria-valuetext={`step ${count(step)}`} onInput={(event) => show({ step: steps[Number(event.currentTarget.value)]! })} />
        </label>
        <output>{count(step)}</output>
        <Choice words="Score of heads" options={measures} value={shown.score} change={(score) => show({ score, head: "" })} />
        {tasks.length > 1 && <Choice words="Task" options={tasks} value={shown.task} change={(task) => show({ task })} />}
      </div>
      <div class="trainings">
        {data.runs.map((run) => (
          <section key={run.name} aria-label={run.name}>
            {data.runs.length > 1 && <h3>{run.name}</h3>}
            <Training run={run} data={data} step={step} shown={shown} show={(head) => show({ head })} />
          </section>
        ))}
      </div>
      <Files name={title} texts={{ csv: () => table(data), json: () => JSON.stringify(data) }} />
    </>
  );
}

function Choice({ words, options, value, change }: { words: string; options: string[]; value: string; change: (value: string) => void }) {
  return (
    <label>
      {words}{" "}
      <select value={value} onChange={(event) => change(event.currentTarget.value)}>
        {options.map((option) => (
          <option key={option} value={option}>
            {option}
          </option>
        ))}
      </select>
    </label>
  );
}

type Shown = { score: string; head: string; task: string };

function Training({ run, data, step, shown, show }: { run: Run; data: Data; step: number; shown: Shown; show: (head: string) => void }) {
  const score = run.scores.find((one) => one.name === shown.score);
  const grid = score && upTo(run, score.values, step);
  const largest = Math.max(0, ...data.runs.flatMap((one) => one.scores.filter((some) => some.name === shown.score)).flatMap((some) => some.values.flatMap((values) => (values ?? []).flat().map((value) => Math.abs(value ?? 0)))));
  const wanted = shown.head || score?.best;
  const head = run.attention.find((one) => one.head === wanted) ?? run.attention.find((one) => one.head === score?.best) ?? run.attention[0];
  const pattern = head && upTo(run, head.values, step);
  const circuit = run.circuits.find((one) => one.task === shown.task);
  const edges = circuit && upTo(run, circuit.values, step);
  return (
    <>
      <div class="maps">
        {grid && (
          <div>
            <h4>{score.name}</h4>
            <Figure label={score.name}>
              <Heads grid={grid.value} largest={largest} chosen={head?.head ?? ""} known={run.attention.map((one) => one.head)} show={show} />
            </Figure>
          </div>
        )}
        {pattern && (
          <div>
            <h4>
              <span class="name">{head.head}</span> in the example
            </h4>
            <Figure label={`Attention of ${head.head}`}>
              <Pattern tokens={run.tokens} pattern={pattern.value} head={head.head} />
            </Figure>
          </div>
        )}
        {edges && (
          <div>
            <h4>circuit of {circuit.task}</h4>
            <Figure label={`Circuit of ${circuit.task}`}>
              <CircuitAt run={run} circuit={edges.value} />
            </Figure>
            <p class="note">
              {Object.entries(edges.value.numbers)
                .map(([name, value]) => `${name} ${value == null ? "n/a" : Number.isInteger(value) ? count(value) : fixed(value, 2)}`)
                .join(", ")}
              {edges.step !== step && ` (step ${count(edges.step)})`}
            </p>
          </div>
        )}
      </div>
      <p class="facts">
        {run.numbers.map((curve) => {
          const now = upTo(run, curve.values, step);
          return (
            now && (
              <span key={curve.name}>
                {curve.name} <b>{fixed(now.value, 2)}</b>
              </span>
            )
          );
        })}
      </p>
    </>
  );
}

function Heads({ grid, largest, chosen, known, show }: { grid: Grid; largest: number; chosen: string; known: string[]; show: (head: string) => void }) {
  const layers = grid.length;
  const heads = Math.max(...grid.map((row) => row.length));
  const cell = heads > 12 ? 24 : CELL;
  const height = layers > 12 ? 16 : 30;
  const [width, tall] = [34 + cell * heads + 8, height * layers + 30];
  return (
    <svg viewBox={`0 0 ${width} ${tall}`} width={width} height={tall} role="group" aria-label="Heads across, layers up" font-size="11">
      {grid.map((row, layer) => {
        const y = 6 + height * (layers - 1 - layer);
        return (
          <g key={layer}>
            <text x={28} y={y + height / 2 + 4} text-anchor="end" fill="var(--muted)">
              a{layer}
            </text>
            {row.map((value, i) => {
              const name = `a${layer}.h${i}`;
              const strong = Math.abs(value ?? 0) / (largest || 1);
              const can = known.includes(name);
              return (
                <g key={name} {...said(`${name}: ${fixed(value, 3)}`)} {...(can ? { class: "node", role: "button", tabIndex: 0, "aria-label": `${name}: ${fixed(value == null ? null : Math.round(100 * value) / 100, 2)}`, "aria-pressed": name === chosen, onClick: () => show(name), onKeyDown: (event: KeyboardEvent) => (event.key === "Enter" || event.key === " ") && (event.preventDefault(), show(name)) } : {})}>
                  <rect class="rim" x={34 + cell * i + 1} y={y + 1} width={cell - 2} height={height - 2} rx="3" fill={`color-mix(in srgb, var(--${sign(value) === "hurts" ? "helps" : "hurts"}) ${Math.round(82 * strong)}%, var(--panel))`} stroke={name === chosen ? "var(--ink)" : "var(--line)"} stroke-width={name === chosen ? 1.8 : 0.8} />
                  {cell >= 40 && (
                    <text x={34 + cell * (i + 0.5)} y={y + height / 2 + 4} text-anchor="middle" fill={strong > 0.55 ? "var(--paper)" : "var(--ink)"} pointer-events="none">
                      {fixed(value == null ? null : Math.round(100 * value) / 100, 2)}
                    </text>
                  )}
                </g>
              );
            })}
          </g>
        );
      })}
      <g fill="var(--muted)" text-anchor="middle" aria-hidden="true">
        {Array.from({ length: heads }, (_, i) => (
          <text key={i} x={34 + cell * (i + 0.5)} y={tall - 8}>
            h{i}
          </text>
        ))}
      </g>
    </svg>
  );
}

function Pattern({ tokens, pattern, head }: { tokens: string[]; pattern: Grid; head: string }) {
  const words = tokens.map((token) => JSON.stringify(token).slice(1, -1).replace(/^ /, "\u00b7").slice(0, 12));
  const cell = 16;
  const room = 7 * Math.max(...words.map((word) => word.length)) + 12;
  const side = room + cell * tokens.length + 8;
  return (
    <svg viewBox={`0 0 ${side} ${side}`} width={side} height={side} role="img" aria-label={`Attention of ${head}: queries down, keys across`} font-size="10.5" font-family="var(--mono)">
      <g fill="var(--muted)">
        {words.map((word, i) => (
          <g key={i}>
            <text x={room - 6} y={room + cell * (i + 0.5) + 4} text-anchor="end">
              {word}
            </text>
            <text transform={`translate(${room + cell * (i + 0.5) + 4} ${room - 6}) rotate(-90)`}>{word}</text>
          </g>
        ))}
      </g>
      {words.map((_, query) =>
        words.map((_, key) => {
          const value = pattern[query]?.[key] ?? 0;
          return (
            <rect
              key={`${query} ${key}`}
              x={room + cell * key}
              y={room + cell * query}
              width={cell}
              height={cell}
              fill={`color-mix(in srgb, var(--helps) ${Math.round(100 * value)}%, var(--panel))`}
              stroke="var(--line)"
              stroke-width=".5"
              {...said(`${JSON.stringify(tokens[query])} attends to ${JSON.stringify(tokens[key])}: ${Math.round(100 * value)} %`)}
            />
          );
        }),
      )}
    </svg>
  );
}

/* A drawing that saves as a picture. */
function Figure({ label, children }: { label: string; children: ComponentChildren }) {
  const at = useRef<HTMLDivElement>(null);
  return (
    <figure>
      <div ref={at} class="scroll drawn" tabIndex={0} role="group" aria-label={label}>
        {children}
      </div>
      <Files name={label} svg={() => at.current!.querySelector("svg")} />
    </figure>
  );
}

function CircuitAt({ run, circuit }: { run: Run; circuit: Circuit }) {
  const [dx, dy] = [Math.max(20, Math.min(46, 420 / (run.heads + 1))), Math.max(22, Math.min(56, 420 / (run.layers + 1)))];
  const [width, height] = [56 + dx * (run.heads + 1), dy * (run.layers + 1) + 44];
  const middle = 34 + (dx * (run.heads + 1)) / 2;
  /* Heads stand across, an MLP at the right and half a layer higher, embeddings below and logits above all. */
  const place = (site: string): [number, number] => {
    const [, kind, layer, , part, number] = site.match(/^([am])(\d+)(\.(h|kv)(\d+))?/) ?? [];
    if (!kind) return site.startsWith("logits") ? [middle, 14] : [middle, height - 16];
    const up = height - 44 - dy * Number(layer);
    if (kind === "m") return [34 + dx * (run.heads + 0.5), up - dy * 0.42];
    return [34 + dx * ((part ? Number(number) : run.heads / 2) + 0.5), up];
  };
  const top = Math.max(...circuit.edges.map(([, score]) => Math.abs(score ?? 0)), 1e-30);
  const nodes = [...new Set(circuit.edges.flatMap(([edge]) => edge.split("->").map((site) => site.replace(/\.(q|k|v|in)$/, ""))))];
  /* A head and the keys and values that it has to itself stand in one place, which has one name. */
  const named = new Map([...nodes].sort((a) => (a.includes(".kv") ? -1 : 1)).map((node) => [place(node).join(), node]));
  return (
    <svg viewBox={`0 0 ${width} ${height}`} width={width} height={height} role="img" aria-label={`The circuit's ${circuit.edges.length} strongest edges: heads across, layers up`} font-size="10.5">
      <g fill="none">
        {circuit.edges.map(([edge, score]) => {
          const [a, b] = edge.split("->").map(place) as [[number, number], [number, number]];
          const share = Math.abs(score ?? 0) / top;
          return (
            <path
              key={edge}
              d={`M${a[0]} ${a[1]}C${a[0]} ${(a[1] + b[1]) / 2} ${b[0]} ${(a[1] + b[1]) / 2} ${b[0]} ${b[1]}`}
              stroke={`var(--${sign(score)})`}
              stroke-width={0.7 + 3 * share}
              opacity={0.25 + 0.7 * share}
              {...said(`${edge}: ${fixed(score, 4)}`)}
            />
          );
        })}
      </g>
      {nodes.map((node) => {
        const [x, y] = place(node);
        return (
          <g key={node}>
            <circle cx={x} cy={y} r="4" fill="var(--ink)" {...said(node)} />
            {dx >= 28 && named.get(`${x},${y}`) === node && (
              <text x={x + 6} y={y - 5} fill="var(--muted)">
                {node}
              </text>
            )}
          </g>
        );
      })}
    </svg>
  );
}

function table(data: Data): string {
  const rows = data.runs.flatMap((run) =>
    run.scores.flatMap((score) =>
      score.values.flatMap((grid, i) => (grid ?? []).flatMap((row, layer) => row.map((value, head) => [run.name, run.steps[i], score.name, `a${layer}.h${head}`, value]))),
    ),
  );
  return csv([["training", "step", "score", "head", "value"], ...rows]);
}
