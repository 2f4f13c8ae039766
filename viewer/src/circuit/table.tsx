/* All edges of a set: filtered, sorted, paged, copied. */
import { useMemo, useRef, useState } from "preact/hooks";
import { csv, saveText } from "../shared/files";
import { count, fixed, interval, sign } from "../shared/numbers";
import { copy } from "../shared/page";
import { layerOf, type Columns, type Data } from "./data";
import { rowsOf } from "./files";

const PAGE_ROWS = 25;
const naming = new Intl.Collator("en", { numeric: true });

type Key = "rank" | "from" | "to" | "score" | "low" | "layers" | `also${number}`;
type Props = { data: Data; set: Columns; title: string; pinned: string | null; touches: (i: number) => boolean; unpin: () => void };

export function EdgeTable({ data, set, title, pinned, touches, unpin }: Props) {
  const [filter, setFilter] = useState("");
  const [sort, setSort] = useState<{ key: Key; down: boolean }>({ key: "rank", down: false });
  const [page, setPage] = useState(0);
  const layers = (i: number) => layerOf(data.names[set.target[i]!]!, data.grid.rows.length) - layerOf(data.names[set.source[i]!]!, data.grid.rows.length);
  const places = useMemo(() => set.score.map((_, i) => i), [set]);
  const rows = useMemo(() => {
    const terms = filter.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = places.filter((i) => {
      if (pinned !== null && !touches(i)) return false;
      if (!terms.length) return true;
      const words = `${data.names[set.from[i]!]}->${data.names[set.to[i]!]}`.toLowerCase();
      return terms.every((term) => words.includes(term));
    });
    return sorted(kept, sort.key, sort.down, data, set, layers);
  }, [set, filter, pinned, touches, sort]);
  const pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
  const at = Math.min(page, pages - 1);
  const text = () => csv(rowsOf(data, set, rows, layers));
  const copied = useRef<HTMLButtonElement>(null);
  const head = (key: Key, words: string, numeric = true) => (
    <th scope="col" class={numeric ? "num" : undefined} aria-sort={sort.key === key ? (sort.down ? "descending" : "ascending") : undefined}>
      <button type="button" data-key={key} onClick={() => (setSort({ key, down: sort.key === key && !sort.down }), setPage(0))}>
        {words}
      </button>
    </th>
  );
  return (
    <>
      <h3>Edges</h3>
      {set.unit && <p class="note">Scores in {set.unit}.</p>}
      <div class="controls">
        <label>
          Filter <input type="search" class="filter" placeholder="e.g. a9.h6 .q" autocomplete="off" spellcheck={false} value={filter} onInput={(event) => (setFilter(event.currentTarget.value), setPage(0))} />
        </label>
        {pinned !== null && (
          <button type="button" class="pinned" onClick={unpin}>
            Only {pinned} {"\u00d7"}
          </button>
        )}
        <output class="matches">
          {count(rows.length)} of {count(places.length)} edges
        </output>
        <span class="buttons">
          <button type="button" class="copy-csv" ref={copied} onClick={() => void copy(text(), copied.current!)}>
            Copy as CSV
          </button>
          <button type="button" class="save-csv" onClick={() => saveText(text(), `${title} edges`, "csv")}>
            Download CSV
          </button>
        </span>
      </div>
      <div class="scroll" tabIndex={0} role="group" aria-label="Edges">
        <table class="edge-table">
          <thead>
            <tr>
              {head("rank", "Rank")}
              {head("from", "From", false)}
              {head("to", "To", false)}
              {head("score", "Score")}
              {head("low", "Interval")}
              {data.also.map((name, k) => head(`also${k}`, name))}
              {head("layers", "Layers")}
            </tr>
          </thead>
          <tbody>
            {rows.slice(at * PAGE_ROWS, (at + 1) * PAGE_ROWS).map((i) => (
              <tr key={i}>
                <td class="num">{count(i + 1)}</td>
                <td class="name">{data.names[set.from[i]!]}</td>
                <td class="name">{data.names[set.to[i]!]}</td>
                <td class={`num ${sign(set.score[i])}`}>{fixed(set.score[i], set.decimals)}</td>
                <td class="num range">{interval(set.low[i], set.high[i], set.decimals)}</td>
                {set.also.map((column, k) => (
                  <td key={k} class="num">
                    {fixed(column[i], set.decimals)}
                  </td>
                ))}
                <td class="num">{layers(i)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <div class="controls pager">
        <button type="button" class="previous" disabled={at === 0} onClick={() => setPage(at - 1)}>
          Previous
        </button>
        <output class="page">
          page {count(at + 1)} of {count(pages)}
        </output>
        <button type="button" class="next" disabled={at === pages - 1} onClick={() => setPage(at + 1)}>
          Next
        </button>
      </div>
    </>
  );
}

function sorted(rows: number[], key: Key, down: boolean, data: Data, set: Columns, layers: (i: number) => number): number[] {
  if (key === "rank") return down ? rows.reverse() : rows;
  const value = (i: number) => {
    if (key === "from" || key === "to") return data.names[set[key][i]!]!;
    if (key === "layers") return layers(i);
    return (key === "score" ? set.score : key === "low" ? set.low : set.also[Number(key.slice(4))]!)[i] ?? null;
  };
  const values = new Map(rows.map((i) => [i, value(i)]));
  const compare = (a: string | number | null, b: string | number | null) => {
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    return typeof a === "string" ? naming.compare(a, String(b)) : a - Number(b);
  };
  rows.sort((a, b) => compare(values.get(a)!, values.get(b)!) || a - b);
  return down ? rows.reverse() : rows;
}
