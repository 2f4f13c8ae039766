/* What can be undone: the states before, and those that were left by undoing. Quick changes of one thing are one step. */
import { useRef, useState } from "preact/hooks";
import { useShown, type Values } from "../shared/address";

const ONE_STEP = 700;

export function useUndone<T extends Values>(id: string, initial: T) {
  const [shown, show] = useShown(id, initial);
  const now = useRef(shown); // what was made in an earlier frame may call `change` too
  now.current = shown;
  const before = useRef<T[]>([]);
  const after = useRef<T[]>([]);
  const last = useRef({ names: "", at: 0 });
  const [, again] = useState(0);
  const change = (changes: Partial<T>) => {
    const names = Object.keys(changes).join();
    const at = performance.now();
    if (names !== last.current.names || at - last.current.at > ONE_STEP) before.current.push(now.current);
    last.current = { names, at };
    after.current = [];
    show(changes);
  };
  const step = (from: T[], to: T[]) => {
    const state = from.pop();
    if (!state) return false;
    to.push(now.current);
    last.current.names = "";
    show(state);
    again((count) => count + 1);
    return true;
  };
  return {
    shown,
    change,
    undo: () => step(before.current, after.current),
    redo: () => step(after.current, before.current),
    canUndo: before.current.length > 0,
    canRedo: after.current.length > 0,
  };
}
