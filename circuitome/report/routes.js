/* Which edges lie on the route at a threshold: those of at least it, reached from the target over such edges. */
function onRoute(edges, target, threshold) {
  const into = new Map();
  edges.forEach((edge, i) => {
    if (!into.has(edge.target)) into.set(edge.target, []);
    into.get(edge.target).push(i);
  });
  const found = new Set();
  const seen = new Set([target]);
  const todo = [target];
  while (todo.length) {
    for (const i of into.get(todo.pop()) ?? []) {
      if (edges[i].kind !== "reads" && edges[i].importance < threshold) continue;
      found.add(i);
      if (!seen.has(edges[i].source)) {
        seen.add(edges[i].source);
        todo.push(edges[i].source);
      }
    }
  }
  return found;
}
globalThis.onRoute = onRoute;

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const share = (value) => value.toFixed(3);

function describe(route, edge) {
  const place = (node) => `${node.split("@")[0]}, token ${node.split("@")[1]} ${JSON.stringify(route.tokens[node.split("@")[1]])}`;
  const parts = edge.heads.map((value, head) => [`h${head}`, value]).filter((part) => part[1] >= 0.0005);
  if (edge.residual) parts.push(["residual", edge.residual]);
  parts.sort((a, b) => b[1] - a[1]);
  const rows = parts.map(([name, value]) =>
    element("li", {}, element("span", { class: "name" }, name), element("meter", { min: 0, max: 1, value: value / edge.importance }), element("span", { class: "num" }, share(value))),
  );
  return [
    element("h3", {}, `${place(edge.source)} to ${place(edge.target)}`),
    element("p", {}, `${edge.kind}, importance ${share(edge.importance)}`),
    element("ol", {}, ...rows),
  ];
}

function start() {
  const data = JSON.parse((document.getElementById("routes-data") ?? document.getElementById("data")).textContent);
  data.routes.forEach((route, index) => {
    const figure = document.getElementById(`route-${index}`);
    const slider = document.getElementById(`threshold-${index}`);
    const readout = document.getElementById(`readout-${index}`);
    const panel = document.getElementById(`panel-${index}`);
    const show = () => {
      const threshold = Number(slider.value);
      const kept = onRoute(route.edges, route.target, threshold);
      const nodes = new Set([route.target]);
      kept.forEach((i) => nodes.add(route.edges[i].source));
      for (const item of figure.querySelectorAll("[data-edge]")) item.toggleAttribute("hidden", !kept.has(Number(item.dataset.edge)));
      for (const item of figure.querySelectorAll("[data-node]")) item.toggleAttribute("hidden", !nodes.has(item.dataset.node));
      readout.textContent = `${threshold.toFixed(3)}: ${kept.size} edges, ${nodes.size} nodes`;
    };
    if (slider) {
      slider.addEventListener("input", show);
      show();
    }
    figure.addEventListener("click", (event) => {
      const item = event.target.closest("[data-edge]");
      if (item) panel.replaceChildren(...describe(route, route.edges[Number(item.dataset.edge)]));
    });
  });
  document.documentElement.classList.add("ready");
}
if (globalThis.document) start();
