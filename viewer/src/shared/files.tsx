/* Buttons that save what a view shows: pictures in light colours, tables, graphs. */
import { raster, save, slug, standalone } from "./page";

export type Cell = string | number | null | undefined;

/* Rows as CSV; texts with commas, quotes or line breaks are quoted. */
export function csv(rows: Cell[][]): string {
  const cell = (value: Cell) => {
    const text = value == null ? "" : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",") + "\n").join("");
}

export const TYPES: Record<string, string> = { csv: "text/csv", json: "application/json", graphml: "application/graphml+xml", svg: "image/svg+xml" };

/* Save a text under the page's title and a name. */
export function saveText(text: string, name: string, kind: keyof typeof TYPES) {
  save(new Blob([text], { type: TYPES[kind]! }), `${slug(`${document.title} ${name}`)}.${kind}`);
}

type Props = {
  name: string;
  /* The drawing when it is saved; a view on canvas makes it then. */
  svg?: () => SVGSVGElement | null;
  /* The picture of a view that draws it itself. */
  png?: () => Promise<Blob>;
  /* Texts by kind: csv, json, graphml, svg. */
  texts?: Record<string, () => string>;
};

const LABELS: Record<string, string> = { graphml: "GraphML", svg: "SVG" };

export function Files({ name, svg, png, texts = {} }: Props) {
  const keepPng = (blob: Blob) => save(blob, `${slug(`${document.title} ${name}`)}.png`);
  const drawn = async (kind: "png" | "svg") => {
    const drawing = svg?.();
    if (!drawing) return;
    const alone = standalone(drawing);
    if (kind === "svg") saveText(alone.text, name, "svg");
    else keepPng(await raster(alone));
  };
  return (
    <div class="buttons files">
      {svg && (
        <>
          <button type="button" title="Save as PNG at double size, in light colours" onClick={() => drawn("png")}>
            PNG
          </button>
          <button type="button" title="Save as SVG, in light colours" onClick={() => drawn("svg")}>
            SVG
          </button>
        </>
      )}
      {png && (
        <button type="button" title="Save as PNG at double size, in light colours" onClick={() => void png().then(keepPng)}>
          PNG
        </button>
      )}
      {Object.entries(texts).map(([kind, text]) => (
        <button key={kind} type="button" title={`Save as ${LABELS[kind] ?? kind.toUpperCase()}`} onClick={() => saveText(text(), name, kind)}>
          {LABELS[kind] ?? kind.toUpperCase()}
        </button>
      ))}
    </div>
  );
}
