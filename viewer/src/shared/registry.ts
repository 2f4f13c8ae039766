/* The views by name: every file of views/ gives one, as its default. */
import type { ComponentType } from "preact";

export type ViewProps<Data> = {
  /* Unique on the page; names the view in the address. */
  id: string;
  /* What the page carries for it. */
  data: Data;
  /* Its heading, for names of files. */
  title: string;
  /* What stood there without the script. */
  drawing: SVGSVGElement | null;
};

/* Any, since the page carries for each view what its template wrote. */
type AnyView = ComponentType<ViewProps<any>>;

const files = import.meta.glob<{ default: AnyView }>("../views/*.tsx", { eager: true });

export const registry: Record<string, AnyView> = Object.fromEntries(
  Object.entries(files).map(([path, file]) => [path.split("/").at(-1)!.replace(".tsx", ""), file.default]),
);
