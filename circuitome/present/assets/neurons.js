/* Every neuron of a run: found by its name or by a token, one card at a time. */
const nameOf = (index, i) => `m${index.layers[Math.floor(i / index.width)]}.n${i % index.width}`;

function placeOf(index, name) {
  const parts = /^m(\d+)\.n(\d+)$/.exec(name);
  const row = parts ? index.layers.indexOf(Number(parts[1])) : -1;
  return row < 0 || Number(parts[2]) >= index.width ? -1 : row * index.width + Number(parts[2]);
}

/* Neurons by the start of their names, or by a token of their lists: earlier lists first, then those with examples. */
function found(index, words) {
  const total = index.layers.length * index.width;
  const all = Array.from({ length: total }, (_, i) => i);
  if (/^m\d+(\.n?\d*)?$/.test(words.trim())) {
    const start = words.trim();
    return { neurons: all.filter((i) => nameOf(index, i).startsWith(start)).sort((a, b) => (nameOf(index, b) === start) - (nameOf(index, a) === start)), why: [] };
  }
  const asked = words.trim().toLowerCase();
  const plain = index.tokens.map((token) => token.trim().toLowerCase());
  const those = (fits) => new Set([...plain.keys()].filter(fits));
  const same = those((i) => index.tokens[i] === words);
  const alike = those((i) => plain[i] === asked);
  const begins = those((i) => plain[i].startsWith(asked));
  const wanted = [same, alike, begins].find((set) => set.size) ?? new Set();
  const places = new Map();
  for (const { name, values } of index.lists) {
    for (let at = 0; at < index.listed; at++) {
      for (const i of all) if (wanted.has(values[i * index.listed + at]) && !places.has(i)) places.set(i, name);
    }
  }
  const order = index.lists.map((list) => list.name);
  const shown = new Set(index.cards.map((card) => placeOf(index, card.neuron)));
  const rank = (i) => 2 * order.indexOf(places.get(i)) - shown.has(i);
  const neurons = [...places.keys()].sort((a, b) => rank(a) - rank(b));
  return { neurons, why: neurons.map((i) => places.get(i)) };
}
Object.assign(globalThis, { found, placeOf });

const MOST_HITS = 12;
const written = (style, value) => {
  if (value == null || Number.isNaN(value)) return "\u2013";
  if (style === "percent") return `${Number((100 * value).toPrecision(3))}\u00a0%`;
  if (style === "count") return value.toLocaleString("en-US");
  return String(Number(value.toPrecision(3))).replace("-", "\u2212");
};
const signs = (token) => token.replaceAll(" ", "\u2423").replaceAll("\n", "\u21b5");
const listedTokens = (index, values, i) => [...new Set(values.slice(i * index.listed, (i + 1) * index.listed))].filter((t) => t >= 0).map((t) => signs(index.tokens[t]));

function strip(index, example, values, unit) {
  const largest = Math.max(...values.map((value) => Math.abs(value ?? 0))) || 1;
  const line = element("p", { class: "strip" }, element("b", {}, written("number", example.values[example.at])), " ");
  example.tokens.forEach((token, i) => {
    const value = values[i];
    const shade = value ? `color-mix(in srgb, var(--${value > 0 ? "hurts" : "helps"}) calc(${(Math.abs(value) / largest).toFixed(2)} * var(--full)), transparent)` : "none";
    const attributes = { style: `background:${shade}` };
    if (value !== null) attributes.title = `${written("number", value)} ${unit}`;
    if (i === example.at) attributes.class = "at";
    line.append(element("span", attributes, signs(index.tokens[token])));
  });
  return line;
}

function svg(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function small(title, low, high, ...marks) {
  const words = (x, anchor, said) => svg("text", { x, y: 82, "text-anchor": anchor, fill: "var(--muted)", "font-size": 10 }, said);
  const drawn = svg("svg", { viewBox: "0 0 300 88", width: 300, height: 88, role: "img", "aria-label": title }, svg("path", { d: "M0 70.5H300", stroke: "var(--line)" }), ...marks, words(0, "start", low), words(300, "end", high));
  return element("div", {}, element("h3", {}, title), drawn);
}

function histogram(index, counts) {
  const used = counts.map((count, i) => (count ? i : -1)).filter((i) => i >= 0);
  const [first, last] = [Math.min(...used), Math.max(...used)];
  const shown = counts.slice(first, last + 1);
  const [width, top] = [300 / shown.length, Math.max(...shown)];
  const bars = shown.map((count, i) => {
    const height = count ? Math.max(1, (68 * count) / top) : 0;
    const negative = first + i < index.bins.length / 2;
    return svg("rect", { x: i * width + 0.5, y: 70 - height, width: Math.max(1, width - 1), height, fill: `var(--${negative ? "helps" : "hurts"})` }, svg("title", {}, `from ${index.bins[first + i]}: ${count.toLocaleString("en-US")} tokens`));
  });
  return small("Tokens by size of the activation", index.bins[first], index.bins[last], ...bars);
}

function course(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const points = values.map((value, i) => `${((300 * i) / Math.max(1, values.length - 1)).toFixed(1)},${(70 - (66 * value) / (high || 1)).toFixed(1)}`);
  const line = svg("polyline", { points: points.join(" "), fill: "none", stroke: "var(--ink)", "stroke-width": 1.5 });
  return small(`Active, by position: ${written("percent", low)} to ${written("percent", high)}`, "start of the window", "end", line);
}

function cardOf(index, i) {
  const name = nameOf(index, i);
  const more = index.cards.find((card) => card.neuron === name);
  const facts = element("p", { class: "facts" }, ...index.numbers.map(({ name: label, style, values }) => element("span", {}, `${label} `, element("b", {}, written(style, values[i])))));
  const lists = element("dl", {});
  for (const { name: label, values } of index.lists) {
    const tokens = listedTokens(index, values, i);
    if (tokens.length) lists.append(element("dt", {}, label), element("dd", {}, ...tokens.map((token) => element("code", {}, token))));
  }
  const parts = [element("h3", { class: "name" }, name), lists, facts];
  if (!more) return [...parts, element("p", { class: "note" }, "Its examples, in a terminal: ", element("code", {}, `circuitome neuron ${name} RUN`), ", RUN being this run's folder.")];
  if (more.examples.length) parts.push(element("h3", {}, "Largest activations, tokens coloured by activation"), ...more.examples.map((example) => strip(index, example, example.values, "")));
  const traced = more.examples.filter((example) => example.causes.length);
  if (traced.length) parts.push(element("h3", {}, "Which tokens make it fire, to first order"), ...traced.map((example) => strip(index, example, example.causes, "")));
  return [...parts, element("div", { class: "maps" }, histogram(index, more.histogram), course(more.curve))];
}

/* All neurons as CSV with the digits that the page has, as `circuitome export` writes them. */
function neuronsCsv(index) {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const numbers = index.numbers.map(({ name, text }) => [name, text.split(" ")]);
  const lists = index.lists.flatMap(({ name, text }) => {
    const tokens = text.split(" ").map((token) => (token === "-1" ? "" : index.tokens[token]));
    return Array.from({ length: index.listed }, (_, place) => [`${name} ${place + 1}`, tokens.filter((_, i) => i % index.listed === place)]);
  });
  const columns = [...numbers, ...lists];
  const rows = Array.from({ length: index.layers.length * index.width }, (_, i) => [nameOf(index, i), ...columns.map(([, values]) => values[i])]);
  return [["neuron", ...columns.map(([name]) => name)], ...rows].map((row) => row.map(quoted).join(",") + "\n").join("");
}

function startNeurons(root) {
  const index = JSON.parse(root.querySelector("script").textContent);
  for (const column of [...index.numbers, ...index.lists]) {
    column.text = column.values;
    column.values = column.text.split(" ").map(Number);
  }
  index.cards = index.cards.filter((card) => placeOf(index, card.neuron) >= 0);
  const [box, hits, shown] = [".filter", ".hits", ".shown"].map((name) => root.querySelector(name));
  const open = (i) => shown.replaceChildren(...cardOf(index, i));
  const search = () => {
    const { neurons, why } = box.value.trim() ? found(index, box.value) : { neurons: index.cards.slice(0, MOST_HITS).map((card) => placeOf(index, card.neuron)), why: [] };
    const count = box.value.trim() ? neurons.length : index.cards.length;
    root.querySelector(".matches").textContent = `${count.toLocaleString("en-US")} neuron${count === 1 ? "" : "s"}${box.value.trim() ? "" : " with examples"}${count > MOST_HITS ? `, ${MOST_HITS} listed` : ""}`;
    hits.replaceChildren(
      ...neurons.slice(0, MOST_HITS).map((i, row) => {
        const button = element("button", { type: "button", class: "name" }, nameOf(index, i));
        button.addEventListener("click", () => open(i));
        const list = index.lists.find(({ name }) => name === why[row]) ?? index.lists[0];
        return element("li", {}, button, element("span", { class: "note" }, `${list.name} ${listedTokens(index, list.values, i).join("  ")}`));
      }),
    );
    if (neurons.length) open(neurons[0]);
  };
  box.addEventListener("input", search);
  root.querySelector(".save-neurons").addEventListener("click", () => save(new Blob([neuronsCsv(index)], { type: "text/csv" }), `${slug(document.title)}-neurons.csv`));
  search();
  for (const cell of $$("td.name")) {
    const i = placeOf(index, cell.textContent.trim());
    if (i < 0) continue;
    const button = element("button", { type: "button", class: "name" }, cell.textContent.trim());
    button.addEventListener("click", () => {
      box.value = cell.textContent.trim();
      search();
      root.scrollIntoView();
    });
    cell.replaceChildren(button);
  }
}
if (globalThis.document) for (const root of $$(".neurons")) startNeurons(root);
