/* What every page does: labels of marks under the pointer, folded rows, the copied command. */
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll(".chart")) {
  chart.addEventListener("pointermove", (event) => {
    const mark = event.target.closest("path[aria-label]");
    tip.hidden = !mark;
    if (!mark) return;
    tip.textContent = mark.getAttribute("aria-label");
    const left = Math.min(event.clientX + 14, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${event.clientY + 16 + window.scrollY}px`;
  });
  chart.addEventListener("pointerleave", () => (tip.hidden = true));
}
for (const button of document.querySelectorAll(".all-rows")) {
  button.addEventListener("click", () => {
    button.closest("p").previousElementSibling.classList.add("open");
    button.remove();
  });
}
document.getElementById("copy-command").addEventListener("click", async (event) => {
  await navigator.clipboard.writeText(document.getElementById("command").textContent);
  event.currentTarget.textContent = "Copied";
});
document.documentElement.classList.add("ready");
