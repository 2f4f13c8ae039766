/* What is shown lies in the address behind the #, so that a link opens the same view. */
import { useEffect, useState } from "preact/hooks";

export type View = Record<string, string>;

const read = (): View => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

export function link(view: View): string {
  const words = new URLSearchParams(Object.entries(view).filter(([, value]) => value !== ""));
  return `#${words.toString()}`;
}

export const go = (view: View) => (location.hash = link(view));

/* Another view in the place of this one, without a step in the history. */
export function replace(view: View) {
  history.replaceState(null, "", link(view));
  dispatchEvent(new HashChangeEvent("hashchange"));
}

export function useView(): View {
  const [view, set] = useState(read());
  useEffect(() => {
    const changed = () => set(read());
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  return view;
}
