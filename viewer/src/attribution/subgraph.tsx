/* Pinned nodes and groups: their picture, and how groups are made, named and taken apart. */
import type { ComponentChildren } from "preact";
import { useMemo, useRef, useState } from "preact/hooks";
import { Files } from "../shared/files";
import { Boxes, DRAWN, arrowsOf, boxesOf, type Arrow, type Box } from "./boxes";
import { groupColour } from "./panel";
import type { Choice, Graph } from "./graph";
import { fixed } from "../shared/numbers";
import { hue } from "./picture";

type Props = { graph: Graph; choice: Choice; choose: (choice: Choice) => void; keep: (node: number) => void; undo?: () => void; title: string; children?: ComponentChildren };

export function Subgraph({ graph, choice, choose, keep, undo, title, children }: Props) {
  const [ticked, setTicked] = useState<Set<number>>(new Set());
  const [name, setName] = useState("");
  const [chosen, setChosen] = useState(-1);
  const holder = useRef<HTMLDivElement>(null);
  const boxes = useMemo(() => boxesOf(graph, choice), [graph, choice]);
  const arrows = useMemo(() => arrowsOf(graph, boxes), [graph, boxes]);
  const inside = new Set(choice.groups.flatMap((group) => group.members));
  const alone = choice.pinned.filter((i) => !inside.has(i));
  const members = alone.filter((i) => ticked.has(i));
  const tick = (i: number) => setTicked((before) => (before.has(i) ? new Set([...before].filter((other) => other !== i)) : new Set([...before, i])));
  const box = boxes[chosen];

  const group = () => {
    if (!members.length || !name.trim()) return;
    choose({ ...choice, groups: [...choice.groups, { name: name.trim(), members }] });
    setTicked(new Set());
    setName("");
  };
  const change = (g: number, groups: Choice["groups"]) => {
    const pinned = [...new Set([...choice.pinned, ...choice.groups[g]!.members])]; // stay as single nodes
    choose({ pinned, groups });
    setChosen(-1);
  };

  return (
    <section class="subgraph" aria-label="Pinned nodes and groups">
      <h3>Pinned nodes and groups</h3>
      {children}
      {!boxes.length && <p class="note">Nothing is pinned. Pin nodes (Shift and a click, or the button beside a kept node), tick some, and name them as a group.</p>}
      {boxes.length > 0 && (
        <p class="note">
          An arrow is the sum of the edges from one box's nodes to another's, whatever the sliders leave out{arrows.length > DRAWN && `; the ${DRAWN} largest of ${arrows.length} are drawn, and all of a box that is chosen`}.
        </p>
      )}
      {boxes.length > 0 && (
        <div class="stage">
          <figure ref={holder}>
            <div class="scroll drawn" tabIndex={0} role="group" aria-label="Pinned nodes and groups">
              <Boxes graph={graph} boxes={boxes} arrows={arrows} chosen={chosen} choose={(b) => setChosen(chosen === b ? -1 : b)} />
            </div>
            <Files name={`${title} groups`} svg={() => holder.current!.querySelector<SVGSVGElement>("svg.boxes")} />
          </figure>
          <aside>
            <div class="panel">
              {box ? (
                <BoxPanel graph={graph} boxes={boxes} arrows={arrows} chosen={chosen} setChosen={setChosen} keep={keep}>
                  {box.group >= 0 && (
                    <GroupTools
                      key={box.group}
                      name={box.name}
                      rename={(to) => choose({ ...choice, groups: choice.groups.map((some, g) => (g === box.group ? { ...some, name: to } : some)) })}
                      dissolve={() => change(box.group, choice.groups.filter((_, g) => g !== box.group))}
                    />
                  )}
                </BoxPanel>
              ) : (
                <>
                  <h3>Group</h3>
                  {alone.length ? (
                    <div onKeyDown={onEnter(group)}>
                      <ul class="ticks">
                        {alone.map((i) => (
                          <li key={i}>
                            <label>
                              <input type="checkbox" checked={ticked.has(i)} onChange={() => tick(i)} /> <span class="name">{graph.nodes[i]!.id}</span> {graph.nodes[i]!.label}
                            </label>
                          </li>
                        ))}
                      </ul>
                      <p class="buttons">
                        <input type="text" value={name} size={14} placeholder="name" aria-label="Name of the group" onInput={(event) => setName(event.currentTarget.value)} />
                        <button type="button" disabled={!members.length || !name.trim()} onClick={group}>
                          Group
                        </button>
                      </p>
                    </div>
                  ) : (
                    <p class="note">Every pinned node is in a group. Click a box for its members and connections.</p>
                  )}
                </>
              )}
              {undo && (
                <p>
                  <button type="button" onClick={undo}>
                    Undo
                  </button>
                </p>
              )}
            </div>
          </aside>
        </div>
      )}
    </section>
  );
}

/* Enter in a field. Not a form: in the app's sandbox none is sent. */
const onEnter = (act: () => void) => (event: KeyboardEvent) => {
  if (event.key === "Enter" && (event.target as HTMLInputElement).type === "text") act();
};

function GroupTools({ name, rename, dissolve }: { name: string; rename: (to: string) => void; dissolve: () => void }) {
  const [typed, setTyped] = useState(name);
  const submit = () => {
    if (typed.trim()) rename(typed.trim());
  };
  return (
    <p class="buttons" onKeyDown={onEnter(submit)}>
      <input type="text" value={typed} size={14} aria-label="Name of the group" onInput={(event) => setTyped(event.currentTarget.value)} />
      <button type="button" disabled={!typed.trim() || typed.trim() === name} onClick={submit}>
        Rename
      </button>
      <button type="button" onClick={dissolve}>
        Ungroup
      </button>
    </p>
  );
}

type BoxProps = { graph: Graph; boxes: Box[]; arrows: Arrow[]; chosen: number; setChosen: (box: number) => void; keep: (node: number) => void; children: any };

function BoxPanel({ graph, boxes, arrows, chosen, setChosen, keep, children }: BoxProps) {
  const box = boxes[chosen]!;
  const side = (title: string, some: Arrow[], end: "from" | "to") =>
    some.length > 0 && (
      <>
        <h3>{title}</h3>
        <ol>
          {some.toSorted((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).map((arrow) => (
            <li key={arrow[end]} class="pair-of-boxes">
              <button type="button" class="name" onClick={() => setChosen(arrow[end])}>
                {boxes[arrow[end]]!.name}
              </button>
              <span class={`num ${hue(arrow.weight)}`}>{fixed(arrow.weight, 3)}</span>
            </li>
          ))}
        </ol>
      </>
    );
  return (
    <>
      <header style={box.group < 0 ? {} : groupColour(box.group)}>
        <b>{box.name}</b>
        <button type="button" class="close" onClick={() => setChosen(-1)}>
          Close
        </button>
      </header>
      {children}
      <h3>Members</h3>
      <ol>
        {box.members.map((i) => (
          <li key={i}>
            <button type="button" class="name" onClick={() => keep(i)}>
              {graph.nodes[i]!.id}
            </button>
            <span title={graph.nodes[i]!.label}>{graph.nodes[i]!.label}</span>
            <span />
          </li>
        ))}
      </ol>
      {side("Brought in", arrows.filter((arrow) => arrow.to === chosen), "from")}
      {side("Brought on", arrows.filter((arrow) => arrow.from === chosen), "to")}
    </>
  );
}
