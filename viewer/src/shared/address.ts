/* What views show lies in the address behind the #, as id.name=value, so that a link opens the same view.

Works in files and in the app's sandbox, whose page takes it over into its own address. */
import { useEffect, useState } from "preact/hooks";

export type Values = Record<string, string | number | boolean>;

const WAIT = 150; // browsers refuse many changes of the address a second
let written: Record<string, string> = read();
let waiting = 0;

function read(): Record<string, string> {
  return location.hash.includes("=") ? Object.fromEntries(new URLSearchParams(location.hash.slice(1))) : {};
}

function write(id: string, values: Values, initial: Values) {
  if (!id) return;
  const others = Object.entries(written).filter(([key]) => !key.startsWith(`${id}.`));
  const mine = Object.entries(values).filter(([name, value]) => value !== initial[name]);
  written = Object.fromEntries([...mine.map(([name, value]) => [`${id}.${name}`, String(value)]), ...others]);
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const words = new URLSearchParams(written).toString();
    history.replaceState(null, "", `#${words}`);
    if (parent !== window) parent.postMessage({ circuitome: words }, "*");
  }, WAIT);
}

/* The values of a view in the address, each of the kind of its initial value. */
function inAddress<T extends Values>(id: string, initial: T): T {
  if (!id) return initial;
  const found = Object.entries(initial).map(([name, value]) => {
    const text = written[`${id}.${name}`];
    if (text === undefined) return [name, value];
    const number = Number(text);
    return [name, typeof value === "number" ? (Number.isFinite(number) ? number : value) : typeof value === "boolean" ? text === "true" : text];
  });
  return Object.fromEntries(found) as T;
}

/* State of a view that a link reopens: its values, and what changes some of them. A view without id is in no link. */
export function useShown<T extends Values>(id: string, initial: T): [T, (changes: Partial<T>) => void] {
  const [values, set] = useState(() => inAddress(id, initial));
  useEffect(() => {
    const changed = () => {
      if (location.hash && !location.hash.includes("=")) return; // a place on the page
      written = read();
      set(inAddress(id, initial));
    };
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, [id]);
  const change = (changes: Partial<T>) =>
    set((before) => {
      const after = { ...before, ...changes };
      write(id, after, initial);
      return after;
    });
  return [values, change];
}

/* Bring the view that a link was made of into sight. */
export function goToShown() {
  const id = Object.keys(written)[0]?.split(/[.-]/)[0]; // what a view keeps apart stands behind a hyphen
  if (id) document.querySelector(`[data-id="${CSS.escape(id)}"]`)?.scrollIntoView({ block: "start", behavior: "instant" });
}
