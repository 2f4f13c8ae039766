/* What every page does: labels of marks under the pointer, folded rows, copying, figures as files. */
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/* ---------- labels under the pointer ---------- */

const tip = document.getElementById("tip");

function showTip(words, x, y) {
  tip.textContent = words;
  tip.hidden = false;
  const left = Math.min(x + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${y + 16 + window.scrollY}px`;
}

const hideTip = () => (tip.hidden = true);

for (const chart of $$(".chart")) {
  chart.addEventListener("pointermove", (event) => {
    const mark = event.target.closest("path[data-label]");
    if (mark) showTip(mark.dataset.label, event.clientX, event.clientY);
    else hideTip();
  });
  chart.addEventListener("pointerleave", hideTip);
}

/* ---------- rows ---------- */

for (const button of $$(".all-rows")) {
  button.addEventListener("click", () => {
    button.closest("p").previousElementSibling.classList.add("open");
    button.remove();
  });
}

for (const field of $$(".find-rows")) {
  const table = field.closest("p").nextElementSibling;
  const rows = $$("tbody tr", table);
  const button = table.nextElementSibling?.querySelector(".all-rows");
  field.addEventListener("input", () => {
    const wanted = field.value.toLowerCase();
    for (const row of rows) row.hidden = wanted !== "" && !row.textContent.toLowerCase().includes(wanted);
    table.classList.toggle("open", wanted !== "" || !button?.isConnected);
    field.closest("p").querySelector("output").textContent = wanted && `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  });
}

/* ---------- copying and saving ---------- */

function announce(words) {
  document.getElementById("said").textContent = words;
}

async function copy(words, button) {
  try {
    await navigator.clipboard.writeText(words);
  } catch {
    const area = element("textarea", { class: "unseen" });
    area.value = words;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  const label = button.textContent;
  button.textContent = "Copied";
  announce("Copied");
  setTimeout(() => (button.textContent = label), 1200);
}

function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const slug = (words) => words.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "") || "circuit";

/* ---------- figures as files: light colours, every style written into its element ---------- */

const INLINED = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "opacity", "font-family", "font-size", "text-anchor"];

function standalone(svg) {
  const copied = svg.cloneNode(true);
  copied.classList.add("light");
  svg.parentNode.append(copied);
  for (const item of [copied, ...$$("*", copied)]) {
    const style = getComputedStyle(item);
    for (const property of INLINED) item.setAttribute(property, style.getPropertyValue(property));
  }
  copied.remove();
  for (const item of [copied, ...$$("*", copied)]) {
    for (const name of ["class", "style", "role", "tabindex"]) item.removeAttribute(name);
    for (const name of item.getAttributeNames()) if (/^(aria|data)-/.test(name)) item.removeAttribute(name);
  }
  const [, , width, height] = svg.getAttribute("viewBox").split(" ").map(Number);
  copied.setAttribute("width", width);
  copied.setAttribute("height", height);
  return { text: new XMLSerializer().serializeToString(copied), width, height };
}

async function raster({ text, width, height }) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = element("canvas", { width: 2 * width, height: 2 * height });
  canvas.getContext("2d").drawImage(image, 0, 0, 2 * width, 2 * height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

for (const figure of $$("figure[data-name]")) {
  if (figure.closest("[data-view]")) continue; // a view has buttons of its own
  const svg = figure.querySelector("svg");
  const name = `${slug(document.title)}-${figure.dataset.name}`;
  const png = element("button", { type: "button", title: "Save as PNG at double size, in light colours" }, "PNG");
  const vector = element("button", { type: "button", title: "Save as SVG, in light colours" }, "SVG");
  png.addEventListener("click", async () => save(await raster(standalone(svg)), `${name}.png`));
  vector.addEventListener("click", () => save(new Blob([standalone(svg).text], { type: "image/svg+xml" }), `${name}.svg`));
  figure.append(element("div", { class: "buttons files" }, png, vector));
}

for (const button of $$(".save-table")) {
  const { name, csv } = button.parentElement.previousElementSibling.dataset;
  button.addEventListener("click", () => save(new Blob([csv], { type: "text/csv" }), `${slug(document.title)}-${name}.csv`));
}

document.getElementById("copy-command")?.addEventListener("click", (event) => copy(document.getElementById("command").textContent, event.currentTarget));
Object.assign(globalThis, { $$, element, showTip, hideTip, announce, copy, save, slug, standalone, raster });
document.documentElement.classList.add("ready");
