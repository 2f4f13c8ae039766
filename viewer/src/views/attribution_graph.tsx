/* The attribution graph of a prompt: tokens across, blocks up; pruned, searched, pinned, grouped, opened and saved. */
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { graphml, opened, written } from "../attribution/exchange";
import { edgesWithin, flow, lastFirst, nodesWithin, type Choice, type Graph } from "../attribution/graph";
import { layout } from "../attribution/layout";
import { NodeList, NodePanel, strongest } from "../attribution/panel";
import { asSvg, Picture } from "../attribution/picture";
import { Subgraph } from "../attribution/subgraph";
import { useShown } from "../shared/address";
import { Files, csv } from "../shared/files";
import { keptOf, Keeping, type Kept } from "../shared/kept";
import { count } from "../shared/numbers";
import { announce, hideTip, showTip } from "../shared/page";
import type { ViewProps } from "../shared/registry";

type Data = Graph & { choice: Choice };
const NONE: number[] = [];
const EDGES = 150; // that are drawn at first, about

/* Names and members as a text that stands in an address: members of "a" are 1 and 5 in a~1.5. */
const packed = (choice: Choice) => ({
  pinned: choice.pinned.join("."),
  groups: choice.groups.map((group) => `${encodeURIComponent(group.name)}~${group.members.join(".")}`).join("!"),
});

function unpacked(pinned: string, groups: string, nodes: number): Choice {
  const places = (text: string) => text.split(".").filter(Boolean).map(Number).filter((i) => Number.isInteger(i) && i >= 0 && i < nodes);
  const group = (text: string) => {
    const [name = "", members = ""] = text.split("~");
    return { name: decoded(name), members: places(members) };
  };
  return { pinned: places(pinned), groups: groups.split("!").filter(Boolean).map(group).filter((some) => some.members.length) };
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/* The same by names of nodes; those that the graph does not have are left out. */
const named = (graph: Graph, choice: Choice): Kept => ({
  groups: choice.groups.map(({ name, members }) => ({ name, members: members.map((i) => graph.nodes[i]!.id) })),
  pinned: choice.pinned.map((i) => graph.nodes[i]!.id),
});

function placed(graph: Graph, kept: Kept): Choice {
  const places = new Map(graph.nodes.map((node, i) => [node.id, i]));
  const of = (names: string[]) => names.flatMap((name) => places.get(name) ?? []);
  return { pinned: of(kept.pinned), groups: kept.groups.map(({ name, members }) => ({ name, members: of(members) })).filter((some) => some.members.length) };
}

/* The share of the edges' influence that about so many edges have. */
function shareOf(graph: Graph, order: number[], edges: number): number {
  const influence = flow(graph, order, () => true).edges.toSorted().reverse();
  const whole = influence.reduce((a, b) => a + b, 0);
  const some = influence.slice(0, edges).reduce((a, b) => a + b, 0);
  return influence.length <= edges ? 1 : Math.max(0.05, Math.floor((100 * some) / whole) / 100);
}

export default function AttributionGraph({ id, data, title }: ViewProps<Data>) {
  const [file, setFile] = useState<{ graph: Graph; choice: Choice; name: string } | null>(null);
  const [problem, setProblem] = useState("");
  const picker = useRef<HTMLInputElement>(null);
  const open = async (event: Event & { currentTarget: HTMLInputElement }) => {
    const chosen = event.currentTarget.files?.[0];
    if (!chosen) return;
    try {
      setFile({ ...opened(await chosen.text()), name: chosen.name });
      setProblem("");
      announce(`${chosen.name} is opened.`);
    } catch (error) {
      setProblem(`${chosen.name}: ${(error as Error).message}`);
    }
    picker.current!.value = "";
  };
  const before = keptOf(id);
  const { graph, choice } = file ?? { graph: data, choice: before ? placed(data, before) : data.choice };
  return (
    <>
      <div class="controls">
        <label class="button">
          Open a file <input ref={picker} class="unseen" type="file" accept=".json,application/json" onChange={open} />
        </label>
        {file && (
          <>
            <output>{file.name}</output>
            <button type="button" onClick={() => setFile(null)}>
              Back to this run
            </button>
          </>
        )}
      </div>
      {problem && (
        <p class="warning" role="alert">
          {problem}
        </p>
      )}
      <Opened key={file?.name ?? ""} id={file ? "" : id} graph={graph} choice={choice} title={file ? file.name.replace(/\.json$/, "") : title} />
    </>
  );
}

function Opened({ id, graph, choice: first, title }: { id: string; graph: Graph; choice: Choice; title: string }) {
  const order = useMemo(() => lastFirst(graph.edges), [graph]);
  const places = useMemo(() => layout(graph), [graph]);
  const initial = useMemo(() => ({ nodes: 1, edges: shareOf(graph, order, EDGES), node: -1, ...packed(first) }), [graph]);
  const [shown, show] = useShown(id, initial);
  const [hovered, point] = useState(-1);
  const [words, setWords] = useState("");
  const before = useRef<{ pinned: string; groups: string }[]>([]);
  const holder = useRef<HTMLDivElement>(null);

  const nodes = useMemo(() => nodesWithin(graph, order, shown.nodes), [graph, shown.nodes]);
  const kept = useMemo(() => edgesWithin(graph, nodes, shown.edges), [nodes, shown.edges]);
  const choice = useMemo(() => unpacked(shown.pinned, shown.groups, graph.nodes.length), [graph, shown.pinned, shown.groups]);
  const pinned = useMemo(() => new Set(choice.pinned), [choice]);
  const groupOf = useMemo(() => new Map(choice.groups.flatMap((group, g) => group.members.map((i) => [i, g] as const))), [choice]);
  const found = useMemo(() => search(graph, words), [graph, words]);
  const clicked = shown.node < graph.nodes.length ? shown.node : -1;
  const active = clicked >= 0 ? clicked : hovered;
  const touching = useMemo(() => (active < 0 ? NONE : kept.ranked.filter((i) => graph.edges[i]![0] === active || graph.edges[i]![1] === active)), [kept, active]);

  const choose = (after: Choice) => {
    before.current.push({ pinned: shown.pinned, groups: shown.groups });
    show(packed(after));
  };
  const undo = () => show(before.current.pop()!);
  const pin = (node: number) => choose({ ...choice, pinned: pinned.has(node) ? choice.pinned.filter((i) => i !== node) : [...choice.pinned, node] });
  const close = () => (point(-1), show({ node: -1 }));
  const keep = (node: number, pinning = false) => (node < 0 ? close() : pinning ? pin(node) : show({ node }));
  const hover = (node: number, x: number, y: number) => {
    if (clicked < 0) point(node);
    if (node < 0) return hideTip();
    const { id: name, label } = graph.nodes[node]!;
    showTip(label ? `${name} ${label}` : name, x, y);
  };
  useEffect(() => {
    const press = (event: KeyboardEvent) => event.key === "Escape" && close();
    document.addEventListener("keydown", press);
    return () => document.removeEventListener("keydown", press);
  }, []);

  const picture = { graph, places, kept, active, touching, pinned, groupOf, found };
  const svg = () => {
    holder.current!.replaceChildren(asSvg(picture));
    return holder.current!.firstElementChild as SVGSVGElement;
  };
  const rows = () => [["from", "to", "weight", "influence"], ...kept.ranked.map((i) => [graph.nodes[graph.edges[i]![0]]!.id, graph.nodes[graph.edges[i]![1]]!.id, graph.edges[i]![2], kept.influence[i]!])];
  const json: Record<string, () => string> = graph.metadata.prompt_tokens ? { json: () => written(graph, choice, clicked) } : {}; // old runs kept none
  const texts = { csv: () => csv(rows()), ...json, graphml: () => graphml(graph, kept.ranked) };
  const drawnNodes = kept.nodes.reduce((a, b) => a + b, 0);
  return (
    <>
      <div class="controls">
        <Share name="Nodes" about="Share of the nodes' influence that the shown ones have" value={shown.nodes} change={(nodes) => show({ nodes })} />
        <Share name="Edges" about="Share of the edges' influence that the shown ones have" value={shown.edges} change={(edges) => show({ edges })} />
        <output>
          {count(drawnNodes)} of {count(graph.nodes.length)} nodes, {count(kept.ranked.length)} of {count(graph.edges.length)} edges
        </output>
        <label>
          Search <input type="search" value={words} placeholder="m5.n123, or a token" spellcheck={false} onInput={(event) => (setWords(event.currentTarget.value), close())} />
        </label>
      </div>
      <div class="stage">
        <figure>
          <Picture {...picture} id={id} point={hover} keep={keep} label={title} />
          <div ref={holder} class="unseen" aria-hidden="true" />
          <Files name={title} svg={svg} texts={texts} />
          {!graph.source && graph.nodes.some((node) => node.others) && <p class="note">JSON has all sources that are not drawn as one node, others; graph.json in the folder of the run has them by block and token. All other files hold what is drawn.</p>}
        </figure>
        <aside>
          <div class={clicked >= 0 ? "panel kept" : "panel"} role="status">
            {active >= 0 ? (
              <NodePanel graph={graph} node={active} touching={touching} kept={clicked >= 0} pinned={pinned.has(active)} left={!kept.nodes[active]} group={choice.groups[groupOf.get(active) ?? -1]} pin={() => pin(active)} close={close} keep={keep} />
            ) : found ? (
              <NodeList graph={graph} title={`${found.size} node${found.size === 1 ? "" : "s"} found`} note="in names and labels" nodes={[...found]} keep={keep} />
            ) : (
              <NodeList graph={graph} title="Most influence" note="with the tokens that a node promotes as it acts here, and its effect" nodes={strongest(graph, kept)} keep={keep} />
            )}
          </div>
        </aside>
      </div>
      <p class="note">
        Columns are tokens, rows blocks. A dot is a neuron at a token, larger with more influence; blue raises what is explained, orange lowers it, by all paths. Squares below are tokens, those above the explained logits; diamonds are errors. Hover a node to see its edges, click to keep it, with <kbd>Shift</kbd> to pin it; <kbd>Esc</kbd> lets go. <kbd>Ctrl</kbd> and the wheel, or <kbd>+</kbd>, <kbd>-</kbd> and <kbd>0</kbd>, zoom; dragging moves. Edges with less influence than those of the sliders' shares are left out, and nodes that then have none.
      </p>
      <Subgraph graph={graph} choice={choice} choose={choose} keep={keep} {...(before.current.length ? { undo } : {})} title={title}>
        {id && <Keeping id={id} title={title} made={named(graph, choice)} restore={(kept) => choose(placed(graph, kept))} />}
      </Subgraph>
    </>
  );
}

function Share({ name, about, value, change }: { name: string; about: string; value: number; change: (value: number) => void }) {
  return (
    <label class="slider" title={about}>
      <span>{name}</span>
      <input type="range" min={0} max={1} step={0.01} value={value} aria-valuetext={`${Math.round(100 * value)} %`} onInput={(event) => change(Number(event.currentTarget.value))} />
      <output>{Math.round(100 * value)} %</output>
    </label>
  );
}

function search(graph: Graph, words: string): Set<number> | null {
  const wanted = words.trim().toLowerCase();
  if (!wanted) return null;
  return new Set([...graph.nodes.keys()].filter((i) => `${graph.nodes[i]!.id} ${graph.nodes[i]!.label}`.toLowerCase().includes(wanted)));
}
