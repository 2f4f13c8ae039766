/* A drawing that the page came with, inside a view. */
import { useLayoutEffect, useRef } from "preact/hooks";

export function Adopted({ drawing, label, kind = "drawn" }: { drawing: SVGSVGElement; label: string; kind?: string }) {
  const place = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => place.current!.replaceChildren(drawing), [drawing]);
  return <div ref={place} class={`scroll ${kind}`} tabIndex={0} role="group" aria-label={label} />;
}
