/* Which set of edges and which inputs are shown; search; groups. */
import { useState } from "preact/hooks";
import type { Data, Group } from "./data";

type Shown = { set: number; kinds: string };

export function Switches({ data, state, change }: { data: Data; state: Shown; change: (changes: Partial<Shown>) => void }) {
  const flip = (kind: string) => change({ kinds: state.kinds.includes(kind) ? state.kinds.replace(kind, "") : [...state.kinds, kind].sort().join("") });
  const kinds = [
    ["0", "queries"],
    ["1", "keys"],
    ["2", "values"],
    ["3", "MLPs"],
  ] as const;
  return (
    <div class="controls">
      {data.sets.length > 1 && (
        <fieldset class="sets">
          <legend>edges of</legend>
          {data.sets.map((set, i) => (
            <label key={set.name}>
              <input type="radio" name={`set ${data.sets.map((other) => other.name).join()}`} checked={state.set === i} onChange={() => change({ set: i })} /> {set.name}
            </label>
          ))}
        </fieldset>
      )}
      <fieldset class="kinds">
        <legend>into</legend>
        {kinds.map(([kind, words]) => (
          <label key={kind}>
            <input type="checkbox" checked={state.kinds.includes(kind)} onChange={() => flip(kind)} /> {words}
          </label>
        ))}
      </fieldset>
    </div>
  );
}

type SearchProps = { field: { current: HTMLInputElement | null }; words: string; found: number | null; set: (words: string) => void; enter: () => void };

export function Search({ field, words, found, set, enter }: SearchProps) {
  return (
    <label>
      Find node{" "}
      <input
        ref={field}
        type="search"
        class="find-node"
        placeholder="e.g. a9.h6"
        autocomplete="off"
        spellcheck={false}
        value={words}
        onInput={(event) => set(event.currentTarget.value)}
        onKeyDown={(event) => event.key === "Enter" && enter()}
      />{" "}
      <output>{found !== null && `${found} ${found === 1 ? "node" : "nodes"}`}</output>
    </label>
  );
}

type GroupingProps = { selected: string[]; groups: Group[]; roles: Group[]; group: (name: string) => void; clear: () => void; regroup: (groups: Group[]) => void };

export function Grouping({ selected, groups, roles, group, clear, regroup }: GroupingProps) {
  const [name, setName] = useState("");
  if (selected.length) {
    const make = () => (group(name.trim() || `group ${groups.length + 1}`), setName(""));
    return (
      <span class="grouping">
        {selected.length} selected{" "}
        <label>
          <span class="unseen">Name of the group</span>
          <input type="text" class="group-name" placeholder="name of the group" maxLength={60} value={name} onInput={(event) => setName(event.currentTarget.value)} onKeyDown={(event) => event.key === "Enter" && make()} />
        </label>{" "}
        <button type="button" class="make-group" onClick={make}>
          Group
        </button>{" "}
        <button type="button" onClick={clear}>
          Select none
        </button>
      </span>
    );
  }
  if (groups.length)
    return (
      <button type="button" class="ungroup-all" onClick={() => regroup([])}>
        Ungroup all
      </button>
    );
  if (!roles.length) return null;
  return (
    <button type="button" class="by-role" onClick={() => regroup(roles)}>
      Group by role
    </button>
  );
}
