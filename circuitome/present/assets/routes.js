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

const share = (value) => value.toFixed(3);

function describeEdge(route, edge) {
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

function startRoute(root) {
  const route = JSON.parse(root.querySelector("script").textContent);
  const slider = root.querySelector(".threshold");
  const show = () => {
    const threshold = Number(slider.value);
    const kept = onRoute(route.edges, route.target, threshold);
    const nodes = new Set([route.target]);
    kept.forEach((i) => nodes.add(route.edges[i].source));
    const only = (item, shown) => (shown ? item.removeAttribute("display") : item.setAttribute("display", "none"));
    for (const item of $$("[data-edge]", root)) only(item, kept.has(Number(item.dataset.edge)));
    for (const item of $$("[data-node]", root)) only(item, nodes.has(item.dataset.node));
    root.querySelector("output").textContent = `${threshold.toFixed(3)}: ${kept.size} edges, ${nodes.size} nodes`;
  };
  if (slider) {
    slider.addEventListener("input", show);
    show();
  }
  root.querySelector("svg").addEventListener("click", (event) => {
    const item = event.target.closest("[data-edge]");
    if (item) root.querySelector(".panel").replaceChildren(...describeEdge(route, route.edges[Number(item.dataset.edge)]));
  });
}
if (globalThis.document) for (const root of $$(".route")) startRoute(root);
