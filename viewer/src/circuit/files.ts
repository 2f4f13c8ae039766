/* A circuit as files: SVG, a picture of the canvas, JSON, GraphML. */
import { colours } from "../shared/colours";
import type { Cell } from "../shared/files";
import { headsOf, isBracket, KINDS, type Columns, type Data } from "./data";
import { clipped, DASHED, DASHES, fit, halfSize, drawnNodes, idle, opacity, paintIdle, paintNodes, strokeEdges, width } from "./paint";
import { curve, type Edges, type Nodes } from "./scene";
import { whole } from "../shared/zoom";

const INPUTS = ["q", "k", "v", "in", "logits"];

export const HEADER = ["rank", "from", "to", "score", "low", "high", "layers"];

/* The edges at some places of a set as rows. */
export function rowsOf(data: Data, set: Columns, places: Iterable<number>, layers: (i: number) => number): Cell[][] {
  const names = data.names;
  const rows: Cell[][] = [[...HEADER, ...data.also]];
  for (const i of places)
    rows.push([i + 1, names[set.from[i]!], names[set.to[i]!], set.score[i], set.low[i], set.high[i], layers(i), ...set.also.map((column) => column[i])]);
  return rows;
}

type Link = { source: string; target: string; key: string; input: string; reader: string; score: number | null };

/* As in Python's to_networkx: an edge into keys or values that heads share comes once for each of these heads. */
export function linksOf(data: Data, set: Columns, places: Iterable<number>): Link[] {
  const links: Link[] = [];
  for (const i of places) {
    const [source, reader, target] = [set.from[i]!, set.to[i]!, set.target[i]!].map((n) => data.names[n]!) as [string, string, string];
    for (const node of isBracket(target) ? headsOf(target, data.grid) : [target])
      links.push({ source, target: node, key: reader, input: INPUTS[set.kind[i]!]!, reader, score: set.score[i]! });
  }
  return links;
}

const nodesOf = (links: Link[]) => [...new Set(links.flatMap((link) => [link.source, link.target]))];

/* Node-link data, which networkx reads. */
export function asJson(title: string, unit: string, links: Link[]): string {
  const nodes = nodesOf(links).map((id) => ({ id }));
  return JSON.stringify({ directed: true, multigraph: true, graph: { title, unit }, nodes, links }, null, 1);
}

const xml = (text: string) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`).replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd]/gu, "\ufffd");

export function asGraphml(links: Link[]): string {
  const fields = ["input", "reader", "score"] as const;
  const keys = fields.map((name) => `<key id="${name}" for="edge" attr.name="${name}" attr.type="${name === "score" ? "double" : "string"}"/>`);
  const edges = links.map((link) => {
    const data = fields.filter((name) => link[name] !== null).map((name) => `<data key="${name}">${xml(String(link[name]))}</data>`);
    return `<edge source="${xml(link.source)}" target="${xml(link.target)}" id="${xml(link.key)}">${data.join("")}</edge>`;
  });
  const nodes = nodesOf(links).map((name) => `<node id="${xml(name)}"/>`);
  const graph = `<graph edgedefault="directed">\n${[...nodes, ...edges].join("\n")}\n</graph>`;
  return `<?xml version="1.0" encoding="UTF-8"?>\n<graphml xmlns="http://graphml.graphdrawing.org/xmlns">\n${keys.join("\n")}\n${graph}\n</graphml>\n`;
}

/* The page's colours on paper, whatever the reader's system shows. */
function onPaper() {
  const light = document.createElement("div");
  light.className = "light";
  document.body.append(light);
  const found = colours(light);
  light.remove();
  return found;
}

export async function asPng(data: Data, nodes: Nodes, edges: Edges, count: number): Promise<Blob> {
  const [canvas, paper] = [document.createElement("canvas"), onPaper()];
  fit(canvas, whole(nodes.width, nodes.height), 2);
  const pen = canvas.getContext("2d")!;
  pen.globalCompositeOperation = "destination-over";
  strokeEdges(pen, data, nodes, edges, 0, count, paper, count <= DASHED);
  pen.fillStyle = paper.panel;
  pen.fillRect(0, 0, nodes.width, nodes.height);
  pen.globalCompositeOperation = "source-over";
  paintIdle(pen, data, nodes, paper);
  paintNodes(pen, data, nodes, paper, drawnNodes(data, nodes));
  pen.fillStyle = paper.muted;
  pen.font = "10.5px ui-sans-serif, system-ui, sans-serif";
  for (const { x, y, words, anchor } of axes(data, nodes)) {
    pen.textAlign = anchor === "end" ? "right" : "center";
    pen.fillText(words, x, y);
  }
  return new Promise((resolve) => canvas.toBlob((blob) => resolve(blob!), "image/png"));
}

export function asSvg(data: Data, nodes: Nodes, edges: Edges, count: number): string {
  const paper = onPaper();
  const n = (value: number) => value.toFixed(1).replace(/\.0$/, "");
  const parts = [`<rect width="${nodes.width}" height="${nodes.height}" fill="${paper.panel}"/>`];
  for (const { x, y, words, anchor } of axes(data, nodes))
    parts.push(`<text x="${n(x)}" y="${n(y)}" font-size="10.5" fill="${paper.muted}" text-anchor="${anchor}">${xml(words)}</text>`);
  for (let i = count - 1; i >= 0; i--) {
    const [a, b, ...rest] = curve(nodes, data, edges.source[i]!, edges.target[i]!, edges.kind[i]!).map(n);
    const [weight, dash] = [edges.weight[i]!, count <= DASHED ? DASHES[edges.kind[i]!]! : []];
    const style = `stroke="${edges.score[i]! > 0 ? paper.hurts : paper.helps}" stroke-width="${width(weight).toFixed(2)}" opacity="${opacity(weight).toFixed(2)}"`;
    const said = `${nodes.names[edges.source[i]!]} \u2192 ${nodes.names[edges.target[i]!]} (${KINDS[edges.kind[i]!]}) ${edges.score[i]!.toPrecision(4)}`;
    parts.push(`<path d="M${a} ${b}C${rest.join(" ")}" fill="none" ${style}${dash.length ? ` stroke-dasharray="${dash.join(" ")}"` : ""}><title>${xml(said)}</title></path>`);
  }
  for (const [x, y] of idle(data, nodes)) parts.push(`<circle cx="${n(x)}" cy="${n(y)}" r="1.5" fill="${paper.faint}"/>`);
  for (const i of drawnNodes(data, nodes)) {
    const [[wide, high], name] = [halfSize(data, nodes, i), nodes.names[i]!];
    const [x, y] = [nodes.x[i]!, nodes.y[i]!];
    const box = nodes.boxes.has(i) || data.grid.ends[name] !== undefined;
    if (isBracket(name)) parts.push(`<path d="M${n(x - wide)} ${n(y - 3)}v3h${n(2 * wide)}v-3" fill="none" stroke="${paper.ink}" stroke-width="${(1 + 1.6 * nodes.share[i]!).toFixed(2)}"/>`);
    else if (!box) parts.push(`<circle cx="${n(x)}" cy="${n(y)}" r="${n(high)}" fill="${paper.ink}" fill-opacity="${(0.35 + 0.65 * nodes.share[i]!).toFixed(2)}" stroke="${paper.panel}"><title>${xml(name)}</title></circle>`);
    else {
      parts.push(`<rect x="${n(x - wide)}" y="${n(y - high)}" width="${n(2 * wide)}" height="${n(2 * high)}" rx="${nodes.boxes.has(i) ? 4 : n(high)}" fill="${paper.panel}" stroke="${paper.ink}"/>`);
      parts.push(`<text x="${n(x)}" y="${n(y + 4)}" text-anchor="middle" font-size="11.5" fill="${paper.ink}">${xml(clipped(name))}</text>`);
    }
  }
  const size = `viewBox="0 0 ${n(nodes.width)} ${n(nodes.height)}" width="${n(nodes.width)}" height="${n(nodes.height)}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size} font-family="sans-serif">\n${parts.join("\n")}\n</svg>\n`;
}

/* Numbers of layers and heads; of every second head where they are close. */
export function axes(data: Data, nodes: Nodes, scale = 1): { x: number; y: number; words: string; anchor: "end" | "middle" }[] {
  const { grid } = data;
  const [left, foot, step] = [grid.left + nodes.offset, nodes.height - 10, grid.cell[0] * scale >= 22 ? 1 : 2];
  const end = "end" as const;
  const middle = "middle" as const;
  return [
    { x: left - 8, y: Math.min(...grid.rows) - grid.cell[1] / 2 - 6, words: "layer", anchor: end },
    { x: left - 8, y: foot, words: "head", anchor: end },
    ...grid.rows.map((y, layer) => ({ x: left - 8, y: y + 3.5, words: String(layer), anchor: end })),
    ...grid.columns.flatMap((x, head) => (head % step ? [] : [{ x: x + nodes.offset, y: foot, words: String(head), anchor: middle }])),
    ...(grid.mlp ? [{ x: grid.mlp[0] + nodes.offset, y: foot, words: "MLP", anchor: middle }] : []),
  ];
}
