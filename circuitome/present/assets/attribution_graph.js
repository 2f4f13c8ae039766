/* The attribution graph: edges by a slider, a node's edges under the pointer, and what is known of a kept node. */
const SVG = "http://www.w3.org/2000/svg";
const signed = (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toPrecision(3);
const percent = (value) => `${(100 * value).toPrecision(2)}\u00a0%`;
const hue = (value) => `var(--${value > 0 ? "helps" : value < 0 ? "hurts" : "muted"})`;

function startGraph(root) {
  const data = JSON.parse(root.querySelector("script").textContent);
  const panel = root.querySelector(".panel");
  const links = root.querySelector(".links");
  const slider = root.querySelector(".shown");
  const list = [...panel.childNodes].map((item) => item.cloneNode(true));
  const largest = Math.max(...data.edges.map((edge) => edge[3]), 1e-12);
  let kept = null;

  const curve = ([from, to]) => {
    const [a, b] = [data.nodes[from], data.nodes[to]];
    const pull = Math.max(8, 0.4 * (a.y - b.y));
    return `M${a.x} ${a.y}C${a.x} ${a.y - pull} ${b.x} ${b.y + pull} ${b.x} ${b.y}`;
  };

  function draw(edges, opacity, width) {
    links.replaceChildren(
      ...edges.map((edge) => {
        const path = document.createElementNS(SVG, "path");
        const shape = { d: curve(edge), stroke: hue(edge[2]), "stroke-width": width(edge), "stroke-opacity": opacity };
        for (const [name, value] of Object.entries(shape)) path.setAttribute(name, value);
        return path;
      }),
    );
  }

  const strongest = () => {
    const count = Number(slider.value);
    root.querySelector("output").textContent = `${count} of ${data.edges.length}`;
    draw(data.edges.slice(0, count), 0.45, (edge) => 0.5 + 2.5 * Math.sqrt(edge[3] / largest));
  };

  const touching = (index) => data.edges.filter((edge) => edge[0] === index || edge[1] === index);

  function show(index) {
    const edges = touching(index);
    const most = Math.max(...edges.map((edge) => Math.abs(edge[2])), 1e-12);
    draw(edges, 0.7, (edge) => 0.4 + 3 * Math.sqrt(Math.abs(edge[2]) / most));
    const near = new Set([index, ...edges.flatMap((edge) => edge.slice(0, 2))]);
    for (const item of $$("[data-node]", root)) item.setAttribute("opacity", near.has(Number(item.dataset.node)) ? 1 : 0.15);
    panel.replaceChildren(...described(index, edges));
  }

  function row([from, to, weight], other) {
    const node = data.nodes[other];
    const button = element("button", { type: "button", class: "name", "data-pin": other }, node.id);
    const value = element("span", { class: "num", style: `color:${hue(weight)}` }, signed(weight));
    return element("li", {}, button, element("span", {}, node.label), value);
  }

  function side(title, edges, end) {
    const sorted = [...edges].sort((a, b) => Math.abs(b[2]) - Math.abs(a[2])).slice(0, 15);
    return [element("h3", {}, `${title} (${edges.length})`), element("ol", {}, ...sorted.map((edge) => row(edge, edge[end])))];
  }

  function described(index, edges) {
    const node = data.nodes[index];
    const facts = [];
    if (node.value !== null) facts.push(`activation ${signed(node.value)}`);
    if (node.effect !== null) facts.push(`effect by all paths ${signed(node.effect)}`);
    facts.push(`influence ${percent(node.influence)}`);
    if (node.others !== null) facts.push(`from sources not drawn ${signed(node.others)}`);
    const lines = [element("header", {}, element("b", {}, node.id), element("span", {}, JSON.stringify(data.tokens[node.position] ?? "")))];
    if (kept !== null) lines[0].append(element("button", { type: "button", class: "close" }, "Close"));
    if (node.label) lines.push(element("p", {}, node.label));
    lines.push(element("p", { class: "note" }, facts.join(", ")));
    if (node.heads) lines.push(element("p", { class: "note" }, node.heads));
    if (node.group) lines.push(element("p", { class: "note" }, `group: ${node.group}`));
    const into = edges.filter((edge) => edge[1] === index);
    const out = edges.filter((edge) => edge[0] === index);
    if (into.length) lines.push(...side("Edges in", into, 0));
    if (out.length) lines.push(...side("Edges out", out, 1));
    return lines;
  }

  function rest() {
    kept = null;
    strongest();
    for (const item of $$("[data-node]", root)) item.removeAttribute("opacity");
    panel.replaceChildren(...list.map((item) => item.cloneNode(true)));
    panel.classList.remove("kept");
  }

  function keep(index) {
    kept = index;
    show(index);
    panel.classList.add("kept");
  }

  slider.addEventListener("input", rest);
  const drawing = root.querySelector("svg");
  const at = (event) => event.target.closest("[data-node]");
  drawing.addEventListener("pointerover", (event) => at(event) && kept === null && show(Number(at(event).dataset.node)));
  drawing.addEventListener("pointerout", (event) => at(event) && kept === null && rest());
  drawing.addEventListener("click", (event) => (at(event) ? keep(Number(at(event).dataset.node)) : rest()));
  panel.addEventListener("click", (event) => {
    if (event.target.closest(".close")) return rest();
    const button = event.target.closest("[data-pin]");
    if (button) keep(Number(button.dataset.pin));
  });
  document.addEventListener("keydown", (event) => event.key === "Escape" && kept !== null && rest());
  strongest();
}
if (globalThis.document) for (const root of $$(".attribution")) startGraph(root);
