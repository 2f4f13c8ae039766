/* Reports: each element with data-view becomes the view of that name, on the data and the static drawing inside it. */
import { render } from "preact";
import { registry } from "./shared/registry";
import { goToShown } from "./shared/address";

const uses = new Map<string, number>();
for (const root of document.querySelectorAll<HTMLElement>("[data-view]")) {
  const name = root.dataset.view!;
  const View = registry[name];
  if (!View) continue;
  const before = uses.get(name) ?? 0;
  uses.set(name, before + 1);
  const id = before ? `${name}${before + 1}` : name;
  const data: unknown = JSON.parse(root.querySelector(':scope > script[type="application/json"]')!.textContent!);
  const drawing = root.querySelector<SVGSVGElement>("figure svg[viewBox]");
  root.replaceChildren();
  root.dataset.id = id;
  render(<View id={id} data={data} title={root.dataset.title ?? name} drawing={drawing} />, root);
}
goToShown();
