/* Groups and pins that stay: with the run in the app, whose page around this one keeps them; in a file elsewhere. */
import { useEffect, useRef, useState } from "preact/hooks";
import { saveText } from "./files";
import { announce } from "./page";

/* By names of nodes, so that they fit the same run made anew. */
export type Kept = { groups: { name: string; members: string[] }[]; pinned: string[] };

const NOTHING: Kept = { groups: [], pinned: [] };
const LETTERS = 200;
const BYTES = 2e6;

/* By view, what is kept with the run; none on a page that is not the app's. */
const page = document.getElementById("kept");
const before: Record<string, Kept> = page ? JSON.parse(page.textContent!) : {};
const inApp = page !== null && parent !== window;

/* What the run came with for a view. */
export const keptOf = (id: string): Kept | undefined => (Object.hasOwn(before, id) ? before[id] : undefined);

/* What a file holds for a view, or for its only one. */
export function keptIn(text: string, id: string): Kept {
  let file: unknown;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("It is not JSON; a file of groups that this page saved was expected.");
  }
  const views = file && typeof file === "object" && !Array.isArray(file) ? (file as Record<string, any>) : {};
  const held = Object.hasOwn(views, id) ? views[id] : Object.keys(views).length === 1 ? Object.values(views)[0] : null;
  const isText = (value: unknown) => typeof value === "string" && value !== "" && value.length <= LETTERS;
  const isGroup = (some: any) => isText(some?.name) && Array.isArray(some.members) && some.members.every(isText);
  const [groups, pinned] = [held?.groups, held?.pinned ?? []];
  if (!Array.isArray(groups) || groups.length > LETTERS || !groups.every(isGroup) || !Array.isArray(pinned) || !pinned.every(isText)) throw new Error("It holds no groups for this view; a file of groups that this page saved was expected.");
  return { groups: groups.map(({ name, members }) => ({ name: name.toWellFormed(), members })), pinned };
}

type Props = {
  id: string;
  title: string;
  /* What is shown now. */
  made: Kept;
  /* Show what a file holds. */
  restore: (kept: Kept) => void;
};

export function Keeping({ id, title, made, restore }: Props) {
  const text = JSON.stringify(made);
  const [kept, setKept] = useState(() => JSON.stringify(keptOf(id) ?? NOTHING));
  const [problem, setProblem] = useState("");
  const [said, setSaid] = useState("");
  const asked = useRef<string | null>(null);
  const picker = useRef<HTMLInputElement>(null);
  useEffect(() => {
    const told = (event: MessageEvent) => {
      const answer = event.source === parent ? event.data?.kept : undefined;
      if (answer?.view !== id || asked.current === null) return;
      if (answer.problem) setProblem(String(answer.problem));
      else setKept(asked.current), setProblem(""), setSaid("kept with the run"), announce("Groups are kept with the run");
      asked.current = null;
    };
    addEventListener("message", told);
    return () => removeEventListener("message", told);
  }, [id]);
  useEffect(() => setSaid(""), [text]);

  const save = () => {
    if (!inApp) return saveText(JSON.stringify({ [id]: made }, null, 1), `${title} groups`, "json");
    asked.current = text;
    parent.postMessage({ keep: { view: id, kept: made } }, "*");
  };
  const open = async () => {
    const file = picker.current!.files?.[0];
    if (!file) return;
    try {
      if (file.size > BYTES) throw new Error("It is too large for a file of groups.");
      restore(keptIn(await file.text(), id));
      setProblem("");
      announce(`${file.name} is opened`);
    } catch (error) {
      setProblem(`${file.name}: ${(error as Error).message}`);
    }
    picker.current!.value = "";
  };
  const nothing = !made.groups.length && !made.pinned.length;
  return (
    <span class="buttons keeping">
      <button type="button" class="save-groups" disabled={inApp ? text === kept : nothing} title={inApp ? "Keep these groups with the run: they are here when it is opened again" : "Save these groups as a file, which Open groups reads"} onClick={save}>
        Save groups
      </button>
      <label class="button" title="Open a file of groups">
        Open groups <input ref={picker} class="unseen" type="file" accept=".json,application/json" onChange={open} />
      </label>
      {said && <output>{said}</output>}
      {problem && (
        <span class="warning" role="alert">
          {problem}
        </span>
      )}
    </span>
  );
}
