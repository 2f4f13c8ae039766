/* Where heads attend over the tokens of one prompt: small maps to choose from, one head large, arcs over the tokens.

Used by reports and by the app's prompt box; what is chosen is the caller's to keep. */
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { useColours } from "./colours";
import { shown } from "./tokens";

export type Pattern = (number | null)[][];
export type Chosen = { head: string; query: number };
type Props = Chosen & {
  tokens: string[];
  heads: [string, Pattern][];
  /* Another head, or another token that is kept (-1 for none). */
  choose: (change: Partial<Chosen>) => void;
};

const [LETTER, GAP, TALL, LEAST] = [7.4, 10, 120, 0.01];
const percent = (value: number | null | undefined) => (value == null ? "n/a" : `${(100 * value).toFixed(1)} %`);

export function AttentionView({ tokens, heads, head, query, choose }: Props) {
  const [hovered, hover] = useState<[number, number] | null>(null);
  const [name, pattern] = heads.find(([other]) => other === head) ?? heads[0] ?? ["", []];
  const locked = query >= 0 && query < tokens.length;
  const row = locked ? query : hovered?.[0] ?? tokens.length - 1;
  const around = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const [scroll, x] = [around.current!, tokens.length ? line(tokens).middle(locked ? query : tokens.length - 1) : 0];
    if (x < scroll.scrollLeft + 20 || x > scroll.scrollLeft + scroll.clientWidth - 20) scroll.scrollLeft = x - 0.75 * scroll.clientWidth; // the token that attends is in sight
  }, [tokens, locked, query]);
  const press = (event: KeyboardEvent) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") choose({ query: -1 });
    else if (step) {
      event.preventDefault();
      choose({ query: Math.min(tokens.length - 1, Math.max(0, row + step)) });
    }
  };
  const toggle = (token: number) => choose({ query: locked && query === token ? -1 : token });
  const strongest = (pattern[row] ?? []).map((value, key) => [value ?? 0, key] as const).filter(([value]) => value >= LEAST).sort((a, b) => b[0] - a[0]);
  const pointed = hovered && hovered[1] >= 0 ? ([[pattern[hovered[0]]?.[hovered[1]] ?? 0, hovered[1]]] as const) : null;
  const words = (pointed ?? strongest.slice(0, 4)).map(([value, key], i) => (
    <span key={key}>
      {i > 0 && ", "}
      <bdi>{shown(tokens[key]!)}</bdi> {percent(value)}
    </span>
  ));
  return (
    <div class="attention-view">
      {heads.length > 1 && (
        <div class="thumbnails" role="group" aria-label="Heads">
          {heads.map(([other, values]) => (
            <button key={other} type="button" aria-pressed={other === name} onClick={() => choose({ head: other })}>
              <Map pattern={values} side={56} />
              <span class="name">{other}</span>
            </button>
          ))}
        </div>
      )}
      <div ref={around} class="scroll" tabIndex={0} role="group" aria-label={`Attention of ${name} over the tokens. Left and right move the token that attends, Escape lets go.`} onKeyDown={press}>
        <Arcs tokens={tokens} values={pattern[row] ?? []} row={row} hover={(token) => hover(token === null ? null : [token, -1])} toggle={toggle} />
      </div>
      <p class="said-attention" aria-live="polite">
        <b class="name">{name}</b>: <code>{shown(tokens[pointed ? hovered![0] : row] ?? "")}</code> attends to {words.length ? words : "nothing much"}
      </p>
      <div class="large" title={locked ? "Click the row again to let go" : "Hover a row; click to keep it"}>
        <Map pattern={pattern} side={Math.min(320, Math.max(120, 20 * tokens.length))} row={row} point={hover} toggle={toggle} label={`Attention of ${name}: queries down, keys across`} />
      </div>
    </div>
  );
}

/* A pattern as a map, a pixel for each pair of tokens, enlarged. */
function Map({ pattern, side, row, point, toggle, label }: { pattern: Pattern; side: number; row?: number; point?: (at: [number, number] | null) => void; toggle?: (token: number) => void; label?: string }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const { helps } = useColours();
  const count = Math.max(1, pattern.length);
  useLayoutEffect(() => {
    const context = canvas.current!.getContext("2d")!;
    const image = context.createImageData(count, count);
    const colour = [1, 3, 5].map((i) => parseInt(helps.slice(i, i + 2), 16));
    pattern.forEach((values, i) => values.forEach((value, j) => image.data.set([...colour, Math.round(255 * Math.min(1, value ?? 0))], 4 * (i * count + j))));
    context.putImageData(image, 0, 0);
  }, [pattern, helps]);
  const at = (event: MouseEvent): [number, number] => {
    const box = canvas.current!.getBoundingClientRect();
    const place = (offset: number) => Math.min(count - 1, Math.max(0, Math.floor((offset / box.width) * count)));
    return [place(event.clientY - box.top), place(event.clientX - box.left)];
  };
  const mark = row !== undefined && { top: `${(100 * row) / count}%`, height: `${100 / count}%` };
  return (
    <span class="map" style={{ width: `${side}px`, height: `${side}px` }} onPointerMove={point && ((event) => point(at(event)))} onPointerLeave={point && (() => point(null))} onClick={toggle && ((event) => toggle(at(event)[0]))}>
      <canvas ref={canvas} width={count} height={count} {...(label ? { role: "img", "aria-label": label } : { "aria-hidden": true })} />
      {mark && <i style={mark} />}
    </span>
  );
}

/* Where the tokens are in their line. */
function line(tokens: string[]) {
  const widths = tokens.map((token) => Math.max(14, LETTER * shown(token).length + GAP));
  const lefts = widths.map((_, i) => widths.slice(0, i).reduce((a, b) => a + b, 4));
  return { widths, lefts, middle: (i: number) => lefts[i]! + widths[i]! / 2, width: (lefts.at(-1) ?? 0) + (widths.at(-1) ?? 0) + 4 };
}

/* The tokens in a line, and arcs from one of them to those that it attends to. */
function Arcs({ tokens, values, row, hover, toggle }: { tokens: string[]; values: (number | null)[]; row: number; hover: (token: number | null) => void; toggle: (token: number) => void }) {
  const { widths, lefts, middle, width } = line(tokens);
  const arc = (key: number) => {
    const [from, to] = [middle(row), middle(key)];
    if (key === row) return `M${from - 5} ${TALL}C${from - 14} ${TALL - 26} ${from + 14} ${TALL - 26} ${from + 5} ${TALL}`;
    const high = Math.max(4, TALL - 14 - 0.42 * Math.abs(from - to));
    return `M${from} ${TALL}C${from} ${high} ${to} ${high} ${to} ${TALL}`;
  };
  return (
    <svg class="arcs" viewBox={`0 0 ${width} ${TALL + 30}`} width={width} height={TALL + 30} font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12" role="img" aria-label={`Arcs from token ${row}`} onPointerLeave={() => hover(null)}>
      <rect class="backdrop" width={width} height={TALL + 30} fill="var(--panel)" />
      {values.map((value, key) => value !== null && value >= LEAST && <path key={key} data-key={key} d={arc(key)} fill="none" stroke="var(--helps)" stroke-width={(0.6 + 5 * value).toFixed(2)} stroke-opacity={(0.3 + 0.7 * value).toFixed(2)} />)}
      {tokens.map((token, i) => (
        <g key={i} data-token={i} class="token" onPointerEnter={() => hover(i)} onClick={() => toggle(i)}>
          <rect x={lefts[i]} y={TALL + 3} width={widths[i]} height="22" rx="3" fill="var(--helps)" fill-opacity={(0.6 * (values[i] ?? 0)).toFixed(2)} stroke={i === row ? "var(--ink)" : "none"} stroke-width="1.4" />
          <text x={middle(i)} y={TALL + 18} text-anchor="middle" fill="var(--ink)">
            {shown(token)}
          </text>
        </g>
      ))}
    </svg>
  );
}
