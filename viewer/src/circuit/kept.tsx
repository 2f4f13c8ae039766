/* Groups that stay: with the run in the app, whose page around this one keeps them; in a file elsewhere. */
import { useEffect, useRef, useState } from "preact/hooks";
import { saveText } from "../shared/files";
import { announce } from "../shared/page";
import { writeGroups, type Group } from "./data";

const LETTERS = 200;
const BYTES = 2e6;

/* By view, what is kept with the run; none on a page that is not the app's. */
const page = document.getElementById("kept");
const before: Record<string, Group[]> = page ? JSON.parse(page.textContent!) : {};
const inApp = page !== null && parent !== window;

/* The groups of a view that the run came with. */
export const keptGroups = (id: string): Group[] | undefined => before[id];

/* The groups of a file for a view, or its only ones. */
export function groupsIn(text: string, id: string): Group[] {
  let file: unknown;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("It is not JSON; a file of groups that this page saved was expected.");
  }
  const views = file && typeof file === "object" && !Array.isArray(file) ? (file as Record<string, unknown>) : {};
  const groups = Object.hasOwn(views, id) ? views[id] : Object.keys(views).length === 1 ? Object.values(views)[0] : null;
  const isText = (value: unknown) => typeof value === "string" && value !== "" && value.length <= LETTERS;
  const isGroup = (some: any) => isText(some?.name) && Array.isArray(some.members) && some.members.every(isText);
  if (!Array.isArray(groups) || groups.length > LETTERS || !groups.every(isGroup)) throw new Error("It holds no groups for this view; a file of groups that this page saved was expected.");
  return groups.map(({ name, members }: Group) => ({ name: name.toWellFormed(), members: members.filter((member) => !/[,:;]/.test(member)) }));
}

type Props = { id: string; title: string; groups: Group[]; regroup: (groups: Group[]) => void };

export function Keeping({ id, title, groups, regroup }: Props) {
  const text = writeGroups(groups);
  const [kept, setKept] = useState(() => writeGroups(keptGroups(id) ?? []));
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
    if (!inApp) return saveText(JSON.stringify({ [id]: groups }, null, 1), `${title} groups`, "json");
    asked.current = text;
    parent.postMessage({ keep: { view: id, groups } }, "*");
  };
  const open = async () => {
    const file = picker.current!.files?.[0];
    if (!file) return;
    try {
      if (file.size > BYTES) throw new Error("It is too large for a file of groups.");
      regroup(groupsIn(await file.text(), id));
      setProblem("");
      announce(`${file.name} is opened`);
    } catch (error) {
      setProblem(`${file.name}: ${(error as Error).message}`);
    }
    picker.current!.value = "";
  };
  return (
    <span class="buttons keeping">
      <button type="button" class="save-groups" disabled={inApp ? text === kept : !groups.length} title={inApp ? "Keep these groups with the run: they are here when it is opened again" : "Save these groups as a file, which Open groups reads"} onClick={save}>
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
