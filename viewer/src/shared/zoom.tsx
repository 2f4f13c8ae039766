/* Zoom and pan of a drawing that is painted anew at each step, so that it stays sharp. What is seen lies in the address.

Ctrl and wheel, two fingers, + and - and 0 zoom; dragging, and Shift with arrows, move. At scales up to 1 the drawing
lies in its place and may scroll sideways; beyond, it fills what is seen of that place. */
import type { Ref } from "preact";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import { useShown } from "./address";
import type { Colours } from "./colours";
import { announce, hideTip } from "./page";

const MOST = 24;
const STEP = 1.4;
/* Pixels that a pointer moves before it drags. */
const STILL = 4;

/* Which part of a drawing is seen: its left upper corner and size in units of the drawing, and pixels of a unit. */
export type Sight = { scale: number; x: number; y: number; wide: number; high: number; css: number };

export const whole = (width: number, height: number): Sight => ({ scale: 1, x: 0, y: 0, wide: width, high: height, css: 1 });

/* Whether a box touches what is seen. */
export const seen = (sight: Sight, left: number, top: number, right: number, bottom: number) =>
  right >= sight.x && left <= sight.x + sight.wide && bottom >= sight.y && top <= sight.y + sight.high;

type Drawing = { id: string; width: number; height: number; base: number; room: number };
type Place = { scale: number; x: number; y: number };

/* What is seen of a drawing of some size, of which a unit has `base` pixels at scale 1, in `room` pixels. */
function sightOf({ width, height, base, room }: Drawing, { scale, x, y }: Place): Sight {
  const css = base * scale;
  const wide = (scale > 1 ? Math.min(width * base, room) : width * css) / css;
  const high = height / Math.max(1, scale);
  const within = (value: number, most: number) => Math.max(0, Math.min(most, value));
  return { scale, css, wide, high, x: within(x, width - wide), y: within(y, height - high) };
}

/* Scale and centre, as shares of the drawing, which hold where the window is of another width. */
function written({ width, height }: Drawing, { scale, x, y, wide, high }: Sight): string {
  if (scale === 1) return "";
  const words = [scale, ...(scale > 1 ? [(x + wide / 2) / width, (y + high / 2) / height] : [])];
  return words.map((value) => Number(value.toFixed(5))).join("_");
}

function read(drawing: Drawing, text: string, least: number): Sight {
  const [scale = 1, across = 0, down = 0] = text ? text.split("_").map(Number) : [];
  const fits = Number.isFinite(scale + across + down) ? Math.max(least, Math.min(MOST, scale)) : 1;
  const { wide, high } = sightOf(drawing, { scale: fits, x: 0, y: 0 });
  return sightOf(drawing, { scale: fits, x: across * drawing.width - wide / 2, y: down * drawing.height - high / 2 });
}

const LETTER = 11; // pixels of the letters of nodes' names

/* Sets the pen for names below nodes, with an edge that keeps them apart from lines; gives the pixels of a letter. */
export function penOfNames(pen: CanvasRenderingContext2D, sight: Sight, colours: Colours): number {
  pen.font = `${LETTER / sight.css}px ui-sans-serif, system-ui, sans-serif`;
  pen.textAlign = "center";
  pen.textBaseline = "top";
  pen.lineWidth = 3 / sight.css;
  pen.strokeStyle = colours.panel;
  pen.fillStyle = colours.ink;
  return LETTER;
}

export type Zoom = {
  sight: Sight;
  /* The width and height of the drawing's element, in pixels. */
  style: { width: string; height: string };
  /* Where an event is, in units of the drawing. */
  at: (event: MouseEvent) => [number, number];
  /* Whether a key was one of zooming or moving. */
  press: (event: KeyboardEvent) => boolean;
  /* Bring a point into sight. */
  reveal: (x: number, y: number) => void;
  by: (factor: number) => void;
  fit: () => void;
  least: number;
};

/* `scroll` is around the drawing's element `frame`; `base` gives the pixels of a unit at scale 1 from the room there is. */
export function useZoom(id: string, width: number, height: number, scroll: Ref<HTMLElement>, frame: Ref<HTMLElement>, base: (room: number) => number): Zoom {
  const elements = () => [(scroll as { current: HTMLElement }).current, (frame as { current: HTMLElement }).current] as const;
  const room = useRoom(elements);
  const unit = base(room);
  const least = Math.min(1, room / (width * unit));
  const drawing = useMemo(() => ({ id, width, height, base: unit, room }), [id, width, height, unit, room]);
  const [{ at: text }, show] = useShown(id && `${id}-zoom`, { at: "" });
  const sight = useMemo(() => read(drawing, text, least), [drawing, text, least]);
  const now = useRef({ drawing, sight, least });
  now.current = { drawing, sight, least };
  const next = useRef<Sight | null>(null); // of the coming frame
  const go = (place: Place) => {
    const { drawing, least } = now.current;
    const scale = Math.max(least, Math.min(MOST, Math.abs(place.scale - 1) < 0.02 ? 1 : place.scale));
    if (!next.current) requestAnimationFrame(() => (show({ at: written(now.current.drawing, next.current!) }), (next.current = null)));
    next.current = sightOf(drawing, { ...place, scale });
    hideTip();
  };
  const last = () => next.current ?? now.current.sight;
  const there = useRef(false);
  useEffect(() => {
    const waiting = setTimeout(() => (there.current = true), 100);
    return () => clearTimeout(waiting);
  }, []);

  /* Zoom so that what is at a place of the window stays there. */
  const zoom = (factor: number, clientX: number, clientY: number) => {
    const [outer, inner] = elements();
    const [before, box, around, { drawing, least }] = [last(), inner.getBoundingClientRect(), outer.getBoundingClientRect(), now.current];
    const [x, y] = [(clientX - box.left) / before.css + before.x, (clientY - box.top) / before.css + before.y];
    const scale = Math.max(least, Math.min(MOST, before.scale * factor));
    const after = sightOf(drawing, { scale, x: 0, y: 0 });
    const left = around.left + Math.max(0, (drawing.room - after.wide * after.css) / 2);
    go({ scale, x: x - (clientX - left) / after.css, y: y - (clientY - box.top) / after.css });
  };
  const middle = (): [number, number] => {
    const [outer, inner] = elements();
    const [around, box] = [outer.getBoundingClientRect(), inner.getBoundingClientRect()];
    return [around.left + around.width / 2, (Math.max(0, box.top) + Math.min(innerHeight, box.bottom)) / 2];
  };
  const move = (dx: number, dy: number) => {
    const before = last();
    go({ scale: before.scale, x: before.x - dx / before.css, y: before.y - dy / before.css });
  };
  const by = (factor: number) => (zoom(factor, ...middle()), announce(`${Math.round(100 * last().scale)} %`));
  const fit = () => (go({ scale: now.current.least, x: 0, y: 0 }), announce("all of it"));
  useGestures(elements, zoom, move, () => last().scale > 1);
  return {
    sight,
    style: { width: `${sight.wide * sight.css}px`, height: `${sight.high * sight.css}px` },
    at: (event) => {
      const box = elements()[1].getBoundingClientRect();
      return [(event.clientX - box.left) / sight.css + sight.x, (event.clientY - box.top) / sight.css + sight.y];
    },
    press: (event) => {
      const way = event.shiftKey ? { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key] : undefined;
      if (event.ctrlKey || event.metaKey || event.altKey) return false;
      if (event.key === "+" || event.key === "=") by(STEP);
      else if (event.key === "-" || event.key === "_") by(1 / STEP);
      else if (event.key === "0") fit();
      else if (way) move(way[0]!, way[1]!);
      else return false;
      event.preventDefault();
      return true;
    },
    reveal: (x, y) => {
      const { scale, wide, high, ...corner } = last();
      if (scale <= 1 || !there.current) return; // a link shows what it was made of
      const within = (value: number, from: number, size: number) => value > from + 0.06 * size && value < from + 0.94 * size;
      if (!within(x, corner.x, wide) || !within(y, corner.y, high)) go({ scale, x: x - wide / 2, y: y - high / 2 });
    },
    by,
    fit,
    least,
  };
}

/* The width that there is for the drawing. */
function useRoom(elements: () => readonly [HTMLElement, HTMLElement]): number {
  const [room, setRoom] = useState(960);
  useLayoutEffect(() => {
    const [outer] = elements();
    const measure = () => setRoom(outer.clientWidth || 960);
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(outer);
    return () => observer.disconnect();
  }, []);
  return room;
}

type Zooming = (factor: number, x: number, y: number) => void;
type Moving = (dx: number, dy: number) => void;

/* Wheel, drag and pinch, before the drawing's own listeners, which hear nothing of a drag. */
function useGestures(elements: () => readonly [HTMLElement, HTMLElement], zoom: Zooming, move: Moving, near: () => boolean) {
  const act = useRef({ zoom, move, near });
  act.current = { zoom, move, near };
  useEffect(() => {
    const [, inner] = elements();
    const pointers = new Map<number, PointerEvent>();
    let [dragged, start] = [false, [0, 0] as [number, number]];
    const wheel = (event: WheelEvent) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      act.current.zoom(Math.exp(-0.01 * Math.max(-50, Math.min(50, event.deltaY * (event.deltaMode ? 16 : 1)))), event.clientX, event.clientY);
    };
    const down = (event: PointerEvent) => {
      if (event.button) return;
      if (!pointers.size) [dragged, start] = [false, [event.clientX, event.clientY]];
      pointers.set(event.pointerId, event);
    };
    const moved = (event: PointerEvent) => {
      const before = pointers.get(event.pointerId);
      if (!before) return;
      const others = [...pointers.values()].filter((other) => other.pointerId !== event.pointerId);
      if (!others.length && !act.current.near()) return;
      dragged ||= others.length > 0 || Math.hypot(event.clientX - start[0], event.clientY - start[1]) > STILL;
      if (!dragged) return;
      event.stopPropagation();
      inner.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
      const [other] = others;
      if (!other) return act.current.move(event.clientX - before.clientX, event.clientY - before.clientY);
      const apart = (one: PointerEvent) => Math.max(8, Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY));
      act.current.zoom(apart(event) / apart(before), (event.clientX + other.clientX) / 2, (event.clientY + other.clientY) / 2);
      act.current.move((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
    };
    const up = (event: PointerEvent) => pointers.delete(event.pointerId);
    const click = (event: MouseEvent) => dragged && (event.stopPropagation(), (dragged = false));
    const touch = (event: TouchEvent) => (event.touches.length > 1 || act.current.near()) && event.cancelable && event.preventDefault();
    const heard = [["wheel", wheel], ["pointerdown", down], ["pointermove", moved], ["pointerup", up], ["pointercancel", up], ["click", click], ["touchmove", touch]] as const;
    for (const [name, listener] of heard) inner.addEventListener(name, listener as EventListener, { capture: true, passive: false });
    return () => {
      for (const [name, listener] of heard) inner.removeEventListener(name, listener as EventListener, { capture: true });
    };
  }, []);
}

export function ZoomButtons({ zoom: { sight, by, fit, least } }: { zoom: Zoom }) {
  return (
    <div class="buttons zoom" role="group" aria-label="Zoom">
      <button type="button" aria-label="Zoom out" disabled={sight.scale <= least} onClick={() => by(1 / STEP)}>
        {"\u2212"}
      </button>
      <output>{Math.round(100 * sight.scale)} %</output>
      <button type="button" aria-label="Zoom in" title="Or Ctrl and the wheel; drag to move" disabled={sight.scale >= MOST} onClick={() => by(STEP)}>
        +
      </button>
      <button type="button" title="Show all of it" disabled={sight.scale === least} onClick={fit}>
        Fit
      </button>
    </div>
  );
}
