/* The page's colours by name, for canvases; they follow when the reader's system turns dark or light. */
import { useEffect, useState } from "preact/hooks";

const NAMES = ["paper", "panel", "ink", "muted", "line", "faint", "helps", "hurts", "chance", "mark", "m1", "m2", "m3", "m4", "m5", "m6"] as const;
export type Colours = Record<(typeof NAMES)[number], string>;

export function colours(element: Element = document.documentElement): Colours {
  const style = getComputedStyle(element);
  return Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()])) as Colours;
}

export function useColours(): Colours {
  const [now, set] = useState(() => colours());
  useEffect(() => {
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const changed = () => set(colours());
    dark.addEventListener("change", changed);
    return () => dark.removeEventListener("change", changed);
  }, []);
  return now;
}
