/* A circuit on the model's grid: its edges by size, a node's own edges, groups, other sets of edges, all in a table. */
import { useCallback, useEffect, useMemo, useRef, useState } from "preact/hooks";
import { readGroups, writeGroups, layerOf, type Data, type Group } from "../circuit/data";
import { Figure, nodeWords, type Near } from "../circuit/figure";
import { asGraphml, asJson, asPng, asSvg, linksOf } from "../circuit/files";
import { Front, fromSlider, nearest, saidOf, STEPS, toSlider } from "../circuit/front";
import { useUndone } from "../circuit/history";
import { Panel, Strongest } from "../circuit/panel";
import { Adjacent, between, placed, readers } from "../circuit/scene";
import { Grouping, Search, Switches } from "../circuit/controls";
import { EdgeTable } from "../circuit/table";
import { useColours } from "../shared/colours";
import { Files } from "../shared/files";
import { Keeping, keptOf } from "../shared/kept";
import { count, fixed } from "../shared/numbers";
import { announce, hideTip } from "../shared/page";
import type { ViewProps } from "../shared/registry";

const EVERY_KIND = "01234";

export default function Circuit({ id, data, title }: ViewProps<Data>) {
  const roles = data.groups.map(([name, members]): Group => ({ name, members }));
  const { shown: state, change, undo, redo, canUndo, canRedo } = useUndone(id, {
    set: 0,
    shown: Math.min(data.strongest, Math.max(1, data.sets[0]!.score.length)),
    kinds: EVERY_KIND,
    pin: "",
    open: "",
    groups: writeGroups(keptOf(id)?.groups ?? roles),
  });
  const [hovered, setHovered] = useState(-1);
  const [current, setCurrent] = useState(-1);
  const [selected, setSelected] = useState<string[]>([]);
  const [wanted, setWanted] = useState("");
  const root = useRef<HTMLDivElement>(null);
  const search = useRef<HTMLInputElement>(null);
  const colours = useColours();

  const set = data.sets[state.set] ?? data.sets[0]!;
  const groups = useMemo(() => readGroups(state.groups), [state.groups]);
  const open = useMemo(() => new Set(state.open.split(",").filter(Boolean).map(Number)), [state.open]);
  const kinds = useMemo(() => new Set([...state.kinds].map(Number)), [state.kinds]);
  const nodes = useMemo(() => placed(data, set, groups, open), [data, set, groups, open]);
  const all = useMemo(() => between(set, nodes, kinds, Infinity), [set, nodes, kinds]);
  const enabled = useMemo(() => set.kind.filter((kind) => kinds.has(kind)).length, [set, kinds]);
  const size = Math.min(state.shown, enabled);
  /* Without folded or grouped nodes, the first of all edges are those that a shorter circuit has. */
  const plain = useMemo(() => nodes.shownAs.every((as, i) => as === i), [nodes]);
  const some = useMemo(() => (plain ? all : between(set, nodes, kinds, size)), [plain, all, set, nodes, kinds, plain ? 0 : size]);
  const shown = useMemo(() => ({ edges: some, count: plain ? size : some.score.length }), [some, plain, size]);
  const adjacent = useMemo(() => new Lazy(() => new Adjacent(all, nodes.names.length)), [all, nodes]);

  const numberOf = (name: string) => {
    const i = nodes.names.lastIndexOf(name);
    return i < 0 ? -1 : (nodes.shownAs[i] ?? i);
  };
  const marked = useMemo(() => new Set(selected.map(numberOf)), [selected, nodes]);
  const pinned = state.pin ? numberOf(state.pin) : -1;
  const active = pinned >= 0 ? pinned : hovered < nodes.names.length ? hovered : -1;
  const near = useMemo((): Near | null => {
    if (active < 0) return null;
    const into = readers(active, nodes, data);
    const incoming = adjacent.value.incoming(into);
    const outgoing = adjacent.value.outgoing(active);
    const list = [...incoming, ...outgoing].sort((a, b) => a - b);
    const around = new Set([active, ...into, ...incoming.map((i) => all.source[i]!), ...outgoing.map((i) => all.target[i]!)]);
    return { node: active, edges: all, list, incoming, outgoing, nodes: around };
  }, [active, nodes, all, adjacent]);
  const found = useMemo(() => {
    const words = wanted.trim().toLowerCase();
    if (!words) return null;
    const all = nodes.names.map((_, i) => i).filter((i) => nodes.names[i]!.toLowerCase().includes(words));
    return new Set(all.map((i) => nodes.shownAs[i] ?? i).filter((i) => nodes.live[i]));
  }, [wanted, nodes]);

  const pin = (name: string | null) => {
    if ((name ?? "") === state.pin) return;
    change({ pin: name ?? "" });
    setHovered(-1);
    announce(name === null ? "No node kept" : `${name} kept; the table shows its edges`);
  };
  const innerOf = (name: string) => (/^[mx]\d+/.test(name) ? layerOf(name.split(".")[0]!, data.grid.rows.length) : -1);
  const fold = (layer: number) => {
    const next = open.has(layer) ? [...open].filter((other) => other !== layer) : [...open, layer];
    change({ open: next.join(","), ...(open.has(layer) && pinned >= 0 ? { pin: `m${layer}` } : {}) });
  };
  const inside = (layer: number) => data.neurons[layer]?.length ?? 0;
  const toggle = (i: number) => {
    const name = nodes.names[i]!;
    const layer = name === `m${innerOf(name)}` ? innerOf(name) : -1;
    if (state.pin === name) return pin(null);
    change({ pin: name, ...(layer >= 0 && inside(layer) && !open.has(layer) ? { open: [...open, layer].join(",") } : {}) });
    announce(`${name} kept; the table shows its edges`);
  };
  const select = (i: number) => {
    const name = nodes.names[i]!;
    const next = selected.includes(name) ? selected.filter((other) => other !== name) : [...selected, name];
    setSelected(next);
    announce(`${next.length} nodes selected`);
  };
  const regroup = (next: Group[]) => change({ groups: writeGroups(next), pin: "" });
  const group = (name: string) => {
    const members = selected.flatMap((node) => groups.find((other) => other.name === node)?.members ?? [node]);
    const kept = groups.map((other) => ({ ...other, members: other.members.filter((member) => !members.includes(member)) }));
    regroup([...kept.filter((other) => other.members.length && other.name !== name), { name, members }]);
    setSelected([]);
    announce(`${name}: ${members.length} nodes are drawn as one`);
  };
  const ungroup = (name: string) => regroup(groups.filter((other) => other.name !== name));

  const press = (key: string): boolean => {
    if (key === "Enter" && current >= 0) toggle(current);
    else if (key === " " && current >= 0) select(current);
    else if (key === "o" && active >= 0 && inside(innerOf(nodes.names[active]!))) fold(innerOf(nodes.names[active]!));
    else if (key === "g" && selected.length) root.current!.querySelector<HTMLInputElement>(".group-name")?.focus();
    else return false;
    return true;
  };
  const everywhere = (event: KeyboardEvent) => {
    const field = (event.target as Element).closest("input[type=search], input[type=text]");
    if (event.key === "Escape") {
      hideTip();
      if (wanted) setWanted("");
      else if (pinned >= 0) pin(null);
      else setSelected([]);
    } else if (field || event.ctrlKey || event.metaKey || event.altKey) return;
    else if (event.key === "/") search.current!.focus();
    else if (event.key === "z") undo();
    else if (event.key === "y" || event.key === "Z") redo();
    else return;
    event.preventDefault();
  };
  useClearOfPanel(root, pinned, nodes);

  const move = (i: number) => {
    setCurrent(i);
    setHovered(i);
    announce(nodeWords(set, nodes, i));
  };
  const last = plain ? size - 1 : -1;
  const limit = last >= 0 ? `, |score| from ${fixed(Math.abs(all.score[last]!), set.decimals)} ${set.unit}` : "";
  const measured = nearest(set.measured, size);
  const touching = useMemo(() => {
    const those = pinned < 0 ? new Set<number>() : new Set(readers(pinned, nodes, data));
    const at = (name: number) => nodes.shownAs[name]!;
    return (i: number) => at(set.source[i]!) === pinned || those.has(at(set.target[i]!));
  }, [pinned, nodes, set]);
  const unpin = useCallback(() => change({ pin: "" }), [state]);
  const pinnedName = pinned < 0 ? null : nodes.names[pinned]!;
  const table = useMemo(
    () => <EdgeTable data={data} set={set} title={title} pinned={pinnedName} touches={touching} unpin={unpin} />,
    [data, set, title, pinnedName, touching],
  );
  const strongest = useMemo(() => <Strongest nodes={nodes} pin={pin} />, [nodes, state.pin]);
  const links = () => {
    const places = set.kind.map((_, i) => i).filter((i) => kinds.has(set.kind[i]!));
    return linksOf(data, set, places.slice(0, size));
  };
  const activeName = active < 0 ? "" : nodes.names[active]!;

  return (
    <div ref={root} onKeyDown={everywhere}>
      <Switches data={data} state={state} change={change} />
      {set.about && <p class="note">{set.about}</p>}
      <div class="controls sizes">
        <label class="slider">
          <span>Strongest edges</span>
          <input type="range" class="shown" min={0} max={STEPS} step={1} value={toSlider(size, enabled)} aria-valuetext={`${size} edges`} onInput={(event) => change({ shown: fromSlider(Number(event.currentTarget.value), enabled) })} />
        </label>
        <output class="readout">
          {count(size)} of {count(set.score.length)} edges{limit}
        </output>
        {measured && <output class="faithfulness">{saidOf(measured, size)}</output>}
        <Front set={set} edges={size} pick={(edges) => change({ shown: edges })} />
      </div>
      <div class="controls tools">
        <Search field={search} words={wanted} found={found?.size ?? null} set={setWanted} enter={() => found?.size && pin(nodes.names[[...found].sort((a, b) => nodes.strength[b]! - nodes.strength[a]!)[0]!]!)} />
        <Grouping selected={selected} groups={groups} roles={roles} group={group} clear={() => setSelected([])} regroup={regroup} />
        <Keeping id={id} title={title} made={{ groups, pinned: [] }} restore={(kept) => regroup(kept.groups.map(({ name, members }) => ({ name, members: members.filter((member) => !/[,:;]/.test(member)) })))} />
        {data.neurons.some((row) => row.length) && (
          <button type="button" class="fold-all" onClick={() => change({ open: open.size ? "" : data.neurons.flatMap((row, layer) => (row.length ? [layer] : [])).join(",") })}>
            {open.size ? "Fold all in" : `Fold out ${count(data.neurons.flat().length)} inside of MLPs`}
          </button>
        )}
        <span class="buttons">
          <button type="button" class="undo" disabled={!canUndo} onClick={undo}>
            Undo
          </button>
          <button type="button" class="redo" disabled={!canRedo} onClick={redo}>
            Redo
          </button>
        </span>
      </div>
      <div class="stage">
        <figure>
          <Figure
            id={id}
            data={data}
            set={set}
            nodes={nodes}
            shown={shown}
            colours={colours}
            label={`${title} on the model's grid: ${size} edges; arrow keys move between nodes, Enter keeps one`}
            near={near}
            current={current}
            pinned={pinned}
            selected={marked}
            found={found}
            hover={(node) => pinned < 0 && node !== hovered && setHovered(node)}
            click={(node, many) => (node < 0 ? pin(null) : many ? select(node) : toggle(node))}
            move={move}
            press={press}
          />
          <Files
            name={title}
            png={() => asPng(data, nodes, shown.edges, shown.count)}
            texts={{
              svg: () => asSvg(data, nodes, shown.edges, shown.count),
              json: () => asJson(title, set.unit, links()),
              graphml: () => asGraphml(links()),
            }}
          />
        </figure>
        <aside>
          <div class={`panel${pinned >= 0 ? " kept" : ""}`} role="region" aria-label="Chosen node" tabIndex={0}>
            {near ? (
              <Panel
                set={set}
                nodes={nodes}
                edges={all}
                node={active}
                incoming={near.incoming}
                outgoing={near.outgoing}
                pinned={pinned >= 0}
                group={groups.find((other) => other.name === activeName && nodes.boxes.has(active))}
                inner={inside(innerOf(activeName))}
                opened={open.has(innerOf(activeName))}
                pin={pin}
                fold={() => fold(innerOf(activeName))}
                ungroup={() => ungroup(activeName)}
              />
            ) : (
              strongest
            )}
          </div>
        </aside>
      </div>
      <p class="note keys">
        Click a node to keep it and see its edges, <kbd>Shift</kbd> and click to select several. With the keyboard: arrows move over the grid, <kbd>Enter</kbd> keeps,{" "}
        <kbd>Space</kbd> selects, <kbd>g</kbd> groups, <kbd>o</kbd> folds an MLP out, <kbd>/</kbd> searches, <kbd>z</kbd> undoes, <kbd>y</kbd> does again, <kbd>Esc</kbd> lets go; <kbd>+</kbd>, <kbd>-</kbd> and <kbd>0</kbd> zoom, <kbd>Shift</kbd> and arrows move, as <kbd>Ctrl</kbd> and the wheel and dragging do.
      </p>
      {table}
    </div>
  );
}

/* Computed when it is first asked for. */
class Lazy<T> {
  private made: T | null = null;

  constructor(private make: () => T) {}

  get value(): T {
    return (this.made ??= this.make());
  }
}

/* On narrow screens the panel lies over the lower part of the page: keep the pinned node visible above it. */
function useClearOfPanel(root: { current: HTMLElement | null }, pinned: number, nodes: { y: Float64Array; height: number }) {
  useEffect(() => {
    const panel = root.current?.querySelector(".panel");
    const canvas = root.current?.querySelector("canvas.chosen");
    if (pinned < 0 || !panel || !canvas || getComputedStyle(panel).position !== "fixed") return;
    const box = canvas.getBoundingClientRect();
    const covered = box.top + (nodes.y[pinned]! / nodes.height) * box.height + 60 - panel.getBoundingClientRect().top;
    if (covered > 0) window.scrollBy({ top: covered });
  }, [pinned]);
}
