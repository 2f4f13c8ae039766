/* What comes into a node and what goes out of it; without one, the strongest nodes. */
import { useState } from "preact/hooks";
import { count, fixed, sign } from "../shared/numbers";
import { describe, isInner, KINDS, type Columns, type Group } from "./data";
import type { Edges, Nodes } from "./scene";

const LISTED = 8;
const STRONGEST = 12;

type Props = {
  set: Columns;
  nodes: Nodes;
  edges: Edges;
  node: number;
  incoming: number[];
  outgoing: number[];
  pinned: boolean;
  group?: Group | undefined;
  /* Neurons or features inside of it, and whether they are folded out. */
  inner: number;
  opened: boolean;
  pin: (node: string | null) => void;
  fold: () => void;
  ungroup: () => void;
};

export function Panel(props: Props) {
  const { set, nodes, node, pinned, group, inner, opened } = props;
  const name = nodes.names[node]!;
  return (
    <>
      <header>
        <b>{name}</b>
        {pinned && (
          <button type="button" onClick={() => props.pin(null)}>
            Close
          </button>
        )}
      </header>
      <p class="note">
        strength {fixed(nodes.strength[node]!, set.decimals)} {set.unit}; {group ? `a group of ${group.members.length}` : describe(name)}
      </p>
      {group && <p class="name members">{group.members.join(", ")}</p>}
      {pinned && (inner > 0 || group || isInner(name)) && (
        <p class="buttons">
          {(inner > 0 || isInner(name)) && (
            <button type="button" class="fold" onClick={props.fold}>
              {opened ? "Fold in" : `Fold out ${inner}`}
            </button>
          )}
          {group && (
            <button type="button" class="ungroup" onClick={props.ungroup}>
              Ungroup
            </button>
          )}
        </p>
      )}
      <EdgeList key={`in ${name}`} title="In" list={props.incoming} {...props} />
      <EdgeList key={`out ${name}`} title="Out" list={props.outgoing} {...props} />
    </>
  );
}

function EdgeList({ title, list, set, nodes, edges, pin }: Props & { title: string; list: number[] }) {
  const [all, setAll] = useState(false);
  const shown = all ? list.slice(0, 500) : list.slice(0, LISTED);
  const other = (i: number) => nodes.names[title === "In" ? edges.source[i]! : edges.target[i]!]!;
  return (
    <>
      <h3>
        {title}: {list.length > shown.length ? `${shown.length} of ${count(list.length)}` : list.length}
      </h3>
      {list.length > 0 && (
        <ol class={title.toLowerCase()}>
          {shown.map((i) => (
            <li key={i} class="edge">
              <button type="button" class="name" data-pin={other(i)} onClick={() => pin(other(i))}>
                {other(i)}
              </button>
              <span class="kind">
                {KINDS[edges.kind[i]!]}
                {edges.count[i]! > 1 && ` \u00d7${edges.count[i]}`}
              </span>
              <span class={`num ${sign(edges.score[i])}`}>{fixed(edges.score[i], set.decimals)}</span>
            </li>
          ))}
        </ol>
      )}
      {!all && list.length > LISTED && (
        <button type="button" class="more-edges" onClick={() => setAll(true)}>
          {list.length > 500 ? "The strongest 500" : `All ${list.length}`}
        </button>
      )}
    </>
  );
}

export function Strongest({ nodes, pin }: { nodes: Nodes; pin: (node: string) => void }) {
  const drawn = nodes.names.map((_, i) => i).filter((i) => nodes.live[i]);
  const first = drawn.sort((a, b) => nodes.strength[b]! - nodes.strength[a]!).slice(0, STRONGEST);
  const top = nodes.strength[first[0] ?? 0] || 1;
  return (
    <>
      <h3>Strongest nodes</h3>
      <p class="note">sum of |score| over a node's edges</p>
      <ol>
        {first.map((i) => (
          <li key={i}>
            <button type="button" class="name" data-pin={nodes.names[i]} onClick={() => pin(nodes.names[i]!)}>
              {nodes.names[i]}
            </button>
            <meter min={0} max={1} value={nodes.strength[i]! / top} aria-hidden="true" />
            <span class="num">{fixed(nodes.strength[i], 3)}</span>
          </li>
        ))}
      </ol>
    </>
  );
}
