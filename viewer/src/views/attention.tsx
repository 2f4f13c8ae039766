/* Where heads attend over the tokens of one prompt. */
import { useRef } from "preact/hooks";
import { useShown } from "../shared/address";
import { AttentionView, type Pattern } from "../shared/attention";
import { csv, Files } from "../shared/files";
import type { ViewProps } from "../shared/registry";

type Data = { tokens: string[]; heads: [string, Pattern][] };

export default function Attention({ id, data: { tokens, heads }, title }: ViewProps<Data>) {
  const [chosen, choose] = useShown(id, { head: heads[0]?.[0] ?? "", query: -1 });
  const figure = useRef<HTMLElement>(null);
  const rows = () => [
    ["head", "query", "query token", "key", "key token", "attention"],
    ...heads.flatMap(([head, pattern]) => pattern.flatMap((values, i) => values.flatMap((value, j) => (value === null ? [] : [[head, i, tokens[i], j, tokens[j], value]])))),
  ];
  return (
    <figure ref={figure}>
      <AttentionView tokens={tokens} heads={heads} {...chosen} choose={choose} />
      <Files name={title} svg={() => figure.current!.querySelector<SVGSVGElement>("svg.arcs")} texts={{ csv: () => csv(rows()) }} />
    </figure>
  );
}
