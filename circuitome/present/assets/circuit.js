/* A circuit on the page: which edges are drawn, a node's own edges, the table of edges. */
const PAGE_ROWS = 25;
const LISTED = 8;
const OVERLAY_EDGES = 120;
const KINDS = { q: "query", k: "key", v: "value", mlp: "MLP", logits: "logits" };
const SVG = "http://www.w3.org/2000/svg";
const naming = new Intl.Collator("en", { numeric: true });
const count = (value) => value.toLocaleString("en-US");
const sign = (edge) => (edge.score > 0 ? "hurts" : "helps");

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function compare(a, b, key) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "string" ? naming.compare(a, b) : a - b;
}

function describe(node) {
  if (node.includes(".kv")) return "a key/value head";
  if (node === "logits") return "the model's output";
  if (/^a\d/.test(node)) return "an attention head";
  return /^m\d/.test(node) ? "an MLP" : "an embedding";
}

function startCircuit(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const rows = Object.entries(data.edges);
  const edges = data.edges.from.map((_, i) => ({ rank: i + 1, ...Object.fromEntries(rows.map(([name, column]) => [name, column[i]])) }));
  const $ = (selector) => root.querySelector(selector);
  const figure = $(".grid svg");
  const panel = $(".panel");
  const panelAtRest = [...panel.childNodes];
  const state = {
    shown: Math.min(data.strongest, edges.length),
    kinds: new Set(Object.keys(KINDS)),
    hovered: null,
    pinned: null,
    filter: "",
    sort: { key: "rank", down: false },
    page: 0,
  };

  /* ---------- words ---------- */

  function score(value) {
    if (value === null) return "n/a";
    const tiny = value !== 0 && Math.abs(value) < 0.5 * 10 ** -data.decimals;
    return (tiny ? value.toExponential(1) : value.toFixed(data.decimals)).replace(/-/g, "\u2212");
  }

  const interval = (edge) => (edge.low === null || edge.high === null ? "" : `[${score(edge.low)}, ${score(edge.high)}]`);

  /* ---------- the circuit ---------- */

  const enabled = () => edges.filter((edge) => state.kinds.has(edge.kind));

  function edgePath(edge) {
    const path = shape("path", {
      d: edge.path,
      fill: "none",
      stroke: `var(--${sign(edge)})`,
      "stroke-width": 0.7 + 3.3 * edge.weight ** 1.5,
      opacity: 0.22 + 0.68 * edge.weight,
      "data-kind": edge.kind,
    });
    path.edge = edge;
    return path;
  }

  function drawEdges() {
    const chosen = enabled();
    const visible = chosen.slice(0, state.shown);
    figure.querySelector(".edges").replaceChildren(...visible.map(edgePath).reverse());
    const weakest = visible.at(-1);
    const limit = weakest ? `, |score| from ${score(Math.abs(weakest.score ?? 0))} ${data.unit}` : "";
    $(".readout").textContent = `${count(visible.length)} of ${count(edges.length)} edges${limit}`;
    $(".shown").setAttribute("aria-valuetext", `${visible.length} edges`);
  }

  /* The slider is logarithmic, so that small circuits can be set finely. */
  const toSlider = (edgesShown) => Math.round((1000 * Math.log(Math.max(1, edgesShown))) / Math.log(Math.max(2, edges.length)));
  const fromSlider = (value) => Math.min(edges.length, Math.round(Math.max(2, edges.length) ** (value / 1000)));

  const keyValueNode = (node) => {
    const [layer, head] = node.split(".");
    return head && data.groups[head] ? `${layer}.${data.groups[head]}` : null;
  };

  /* A query head also reads the keys and values of its group's shared head. */
  function touching(node) {
    const shared = keyValueNode(node);
    const usable = enabled();
    return {
      incoming: usable.filter((edge) => edge.target === node || edge.target === shared),
      outgoing: usable.filter((edge) => edge.from === node),
    };
  }

  const active = () => state.pinned ?? state.hovered;

  function showActive() {
    const node = active();
    figure.classList.toggle("choosing", node !== null);
    const overlay = figure.querySelector(".overlay");
    if (node === null) {
      overlay.replaceChildren();
      $$(".near, .chosen", figure).forEach((item) => item.classList.remove("near", "chosen"));
      panel.classList.remove("kept");
      panel.replaceChildren(...panelAtRest);
      return;
    }
    const { incoming, outgoing } = touching(node);
    const all = [...incoming, ...outgoing].sort((a, b) => a.rank - b.rank);
    overlay.replaceChildren(...all.slice(0, OVERLAY_EDGES).map(edgePath).reverse());
    const near = new Set([node, ...incoming.map((edge) => edge.from), ...outgoing.map((edge) => edge.target)]);
    if (incoming.some((edge) => edge.target !== node)) near.add(keyValueNode(node));
    if (node.includes(".kv")) nodeItems().forEach((item) => keyValueNode(item.dataset.node) === node && near.add(item.dataset.node));
    for (const item of $$(".node[data-node]", figure)) {
      item.classList.toggle("near", near.has(item.dataset.node));
      item.classList.toggle("chosen", item.dataset.node === node);
      item.setAttribute("aria-pressed", String(item.dataset.node === state.pinned));
    }
    showPanel(node, incoming, outgoing);
  }

  function showPanel(node, incoming, outgoing) {
    const close = element("button", { type: "button" }, "Close");
    close.addEventListener("click", () => pin(null));
    const head = element("header", {}, element("b", {}, node), ...(state.pinned ? [close] : []));
    const strength = `strength ${score(data.strengths[node] ?? 0)} ${data.unit}; ${describe(node)}`;
    panel.classList.toggle("kept", state.pinned !== null);
    panel.replaceChildren(
      head,
      element("p", { class: "note" }, strength),
      ...edgeList("In", incoming, (edge) => edge.from),
      ...edgeList("Out", outgoing, (edge) => edge.to, (edge) => edge.target),
    );
  }

  function edgeList(title, list, label, node = label) {
    const heading = element("h3", {}, list.length > LISTED ? `${title}: ${LISTED} of ${count(list.length)}` : `${title}: ${list.length}`);
    const items = list.slice(0, LISTED).map((edge) =>
      element(
        "li",
        { class: "edge" },
        element("button", { type: "button", class: "name", "data-pin": node(edge) }, label(edge)),
        element("span", { class: "kind" }, KINDS[edge.kind]),
        element("span", { class: `num ${sign(edge)}` }, score(edge.score)),
      ),
    );
    return list.length ? [heading, element("ol", {}, ...items)] : [heading];
  }

  function hover(node) {
    if (state.hovered === node) return;
    state.hovered = node;
    if (state.pinned === null) showActive();
  }

  function pin(node) {
    state.pinned = node;
    if (node === null) state.hovered = null;
    state.page = 0;
    $$(".node[aria-pressed=true]", figure).forEach((item) => item.setAttribute("aria-pressed", "false"));
    showActive();
    clearOfPanel(node);
    showTable();
    announce(node === null ? "No node kept" : `${node} kept; the table shows its edges`);
  }

  /* On narrow screens the panel lies over the lower part of the page: keep the node visible above it. */
  function clearOfPanel(node) {
    if (node === null || getComputedStyle(panel).position !== "fixed") return;
    const item = nodeItems().find((other) => other.dataset.node === node);
    const covered = item.getBoundingClientRect().bottom + 60 - panel.getBoundingClientRect().top;
    if (covered > 0) window.scrollBy({ top: covered });
  }

  /* ---------- keyboard: one tab stop, arrows move from node to node ---------- */

  const nodeItems = () => $$(".node[data-node]", figure);
  const place = (item) => data.places[item.dataset.node];

  function inReadingOrder() {
    return nodeItems().sort((a, b) => place(b)[1] - place(a)[1] || place(a)[0] - place(b)[0]);
  }

  function verticalNeighbour(item, direction) {
    const [x, y] = place(item);
    const beyond = nodeItems().filter((other) => (y - place(other)[1]) * direction > 0.5);
    const nearest = Math.min(...beyond.map((other) => Math.abs(place(other)[1] - y)));
    const row = beyond.filter((other) => Math.abs(place(other)[1] - y) < nearest + 1);
    return row.sort((a, b) => Math.abs(place(a)[0] - x) - Math.abs(place(b)[0] - x))[0];
  }

  function neighbour(item, key) {
    if (key === "ArrowUp") return verticalNeighbour(item, 1);
    if (key === "ArrowDown") return verticalNeighbour(item, -1);
    const order = inReadingOrder();
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
    return step ? order[order.indexOf(item) + step] : undefined;
  }

  function onNodeKey(event) {
    const item = event.target.closest(".node[data-node]");
    if (!item) return;
    const next = neighbour(item, event.key);
    if (next) {
      item.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus({ preventScroll: true });
      next.scrollIntoView({ block: "nearest", inline: "nearest", behavior: "instant" });
      event.preventDefault();
    } else if (event.key === "Enter" || event.key === " ") {
      toggle(item.dataset.node);
      event.preventDefault();
    }
  }

  const toggle = (node) => pin(state.pinned === node ? null : node);

  function prepareNodes() {
    figure.setAttribute("role", "group");
    figure.setAttribute("aria-label", "The circuit on the model's grid; arrow keys move between nodes");
    for (const item of nodeItems()) {
      const node = item.dataset.node;
      $$("title", item).forEach((title) => title.remove());
      item.setAttribute("role", "button");
      item.setAttribute("tabindex", "-1");
      item.setAttribute("aria-pressed", "false");
      item.setAttribute("aria-label", `${node}, ${describe(node)}, strength ${score(data.strengths[node])}`);
    }
    inReadingOrder()[0]?.setAttribute("tabindex", "0");
  }

  /* ---------- tooltips ---------- */

  function edgeWords(edge) {
    return `${edge.from} \u2192 ${edge.to} (${KINDS[edge.kind]}) ${score(edge.score)} ${interval(edge)} ${data.unit}`;
  }

  function onFigureMove(event) {
    const item = event.target.closest("[data-node]");
    hover(item ? item.dataset.node : null);
    if (event.target.edge) showTip(edgeWords(event.target.edge), event.clientX, event.clientY);
    else if (item) showTip(`${item.dataset.node}, strength ${score(data.strengths[item.dataset.node])}`, event.clientX, event.clientY);
    else hideTip();
  }

  /* ---------- the table ---------- */

  function matching() {
    const terms = state.filter.toLowerCase().split(/\s+/).filter(Boolean);
    const shared = state.pinned && keyValueNode(state.pinned);
    const touches = (edge) => edge.from === state.pinned || edge.target === state.pinned || edge.target === shared;
    const kept = state.pinned ? edges.filter(touches) : edges;
    return kept.filter((edge) => {
      const words = `${edge.from}->${edge.to}`.toLowerCase();
      return terms.every((term) => words.includes(term));
    });
  }

  function sorted(rows) {
    const { key, down } = state.sort;
    const ordered = [...rows].sort((a, b) => compare(a[key], b[key]) || a.rank - b.rank);
    return down ? ordered.reverse() : ordered;
  }

  function row(edge) {
    const cell = (words, kind) => element("td", kind ? { class: kind } : {}, words);
    return element(
      "tr",
      {},
      cell(count(edge.rank), "num"),
      cell(edge.from, "name"),
      cell(edge.to, "name"),
      cell(score(edge.score), `num ${sign(edge)}`),
      cell(interval(edge), "num range"),
      cell(String(edge.layers), "num"),
    );
  }

  function showTable() {
    const rows = sorted(matching());
    const pages = Math.max(1, Math.ceil(rows.length / PAGE_ROWS));
    state.page = Math.min(state.page, pages - 1);
    const from = state.page * PAGE_ROWS;
    $(".edge-table tbody").replaceChildren(...rows.slice(from, from + PAGE_ROWS).map(row));
    $(".page").textContent = `page ${count(state.page + 1)} of ${count(pages)}`;
    $(".previous").disabled = state.page === 0;
    $(".next").disabled = state.page === pages - 1;
    $(".matches").textContent = `${count(rows.length)} of ${count(edges.length)} edges`;
    $(".pinned").hidden = state.pinned === null;
    $(".pinned").textContent = `Only ${state.pinned} \u00d7`;
    for (const head of $$(".edge-table th", root)) {
      if (head.dataset.key !== state.sort.key) head.removeAttribute("aria-sort");
      else head.setAttribute("aria-sort", state.sort.down ? "descending" : "ascending");
    }
  }

  function sortBy(key) {
    state.sort = { key, down: state.sort.key === key && !state.sort.down };
    state.page = 0;
    showTable();
  }

  function csv() {
    const fields = ["rank", "from", "to", "score", "low", "high", "layers"];
    const lines = sorted(matching()).map((edge) => fields.map((field) => edge[field] ?? "").join(","));
    return [fields.join(","), ...lines, ""].join("\n");
  }

  /* ---------- start ---------- */

  function listenToCircuit() {
    figure.addEventListener("pointermove", onFigureMove);
    figure.addEventListener("pointerleave", () => {
      hover(null);
      hideTip();
    });
    figure.addEventListener("click", (event) => {
      const item = event.target.closest("[data-node]");
      if (item) toggle(item.dataset.node);
      else if (!event.target.edge) pin(null);
    });
    figure.addEventListener("keydown", onNodeKey);
    figure.addEventListener("focusin", (event) => hover(event.target.closest("[data-node]")?.dataset.node ?? null));
    figure.addEventListener("focusout", () => hover(null));
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      hideTip();
      if (active() !== null) pin(null);
    });
    panel.addEventListener("click", (event) => {
      const target = event.target.closest("[data-pin]");
      if (target) pin(target.dataset.pin);
    });
  }

  function listenToControls() {
    const slider = $(".shown");
    slider.value = toSlider(state.shown);
    let waiting = false;
    slider.addEventListener("input", () => {
      state.shown = fromSlider(Number(slider.value));
      if (!waiting) requestAnimationFrame(() => ((waiting = false), drawEdges()));
      waiting = true;
    });
    $(".kinds").addEventListener("change", (event) => {
      if (event.target.checked) state.kinds.add(event.target.value);
      else state.kinds.delete(event.target.value);
      drawEdges();
      showActive();
    });
  }

  function listenToTable() {
    for (const head of $$(".edge-table th", root)) {
      const button = element("button", { type: "button" }, head.textContent);
      button.addEventListener("click", () => sortBy(head.dataset.key));
      head.replaceChildren(button);
    }
    $(".filter").addEventListener("input", (event) => {
      state.filter = event.target.value;
      state.page = 0;
      showTable();
    });
    const turn = (step) => () => ((state.page += step), showTable());
    $(".previous").addEventListener("click", turn(-1));
    $(".next").addEventListener("click", turn(1));
    $(".pinned").addEventListener("click", () => pin(null));
    $(".copy-csv").addEventListener("click", (event) => copy(csv(), event.currentTarget));
    $(".save-csv").addEventListener("click", () => save(new Blob([csv()], { type: "text/csv" }), `${slug(`${document.title} ${root.dataset.title}`)}-edges.csv`));
  }

  prepareNodes();
  listenToCircuit();
  listenToControls();
  listenToTable();
  drawEdges();
  showTable();
}

for (const root of $$(".circuit")) startCircuit(root);
