/* A drawing that the page came with, inside a view. */
import { useLayoutEffect, useRef } from "preact/hooks";

/* Where it is wider than its place, its end is seen first. */
export function Adopted({ drawing, label, kind = "drawn" }: { drawing: SVGSVGElement; label: string; kind?: string }) {
  const place = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    place.current!.replaceChildren(drawing);
    place.current!.scrollLeft = place.current!.scrollWidth;
  }, [drawing]);
  return <div ref={place} class={`scroll ${kind}`} tabIndex={0} role="group" aria-label={label} />;
}
