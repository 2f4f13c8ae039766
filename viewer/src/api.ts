/* What the server gives, and how it is asked. Addresses are relative, so that the token stays in front. */
import type { RouteData } from "./shared/routes";

export type Run = {
  name: string;
  kind?: string;
  title?: string;
  created: string;
  seconds?: number | null;
  model?: string;
  command?: string;
  problem?: string;
};
export type JobState = "queued" | "running" | "done" | "failed" | "cancelled";
export type Job = { id: number; study: string; command: string; folder: string; state: JobState; message: string; began: number | null; ended: number | null };
export type Progress = { what: string; done: number; total: number; whole: [number, number] | null };
/* `problem`: what is wrong with the folder or the table of jobs; empty where nothing is. */
export type State = { runs: Run[]; jobs: Job[]; progress: Progress | null; folder: string; problem: string };
export type Field = {
  name: string;
  label: string;
  about: string;
  kind: "text" | "number" | "flag" | "choice";
  default: string;
  choices: string[];
  required: boolean;
  common: boolean;
};
export type Study = { name: string; about: string; of_run: boolean; fields: Field[] };
export type Studies = { studies: Study[]; known: Record<string, string[]> };
export type Next = { token: string; probability: number; ablated: number | null };
export type Stage = { after: string; tokens: [string, number][] };
export type Answer = {
  tokens: string[];
  next: Next[];
  lens: Stage[];
  attention: Record<string, number[][]>;
  looks: number[][];
  shape: { layers: number; heads: number };
};
export type Route = { drawing: string; data: RouteData; title: string; neurons: string[] };

async function read<T>(response: Response): Promise<T> {
  const data = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw new Error(data.error ?? `The server answered ${response.status}.`);
  return data as T;
}

export const get = async <T>(path: string) => read<T>(await fetch(`api/${path}`));

export async function post<T>(path: string, body: unknown = {}): Promise<T> {
  const headers = { "content-type": "application/json" };
  return read<T>(await fetch(`api/${path}`, { method: "POST", headers, body: JSON.stringify(body) }));
}

const AGAIN = 1000; // milliseconds

/* The state, at first all of it and then what of it has changed. Gives what ends it. A server that went is asked again. */
export function follow(tell: (part: Partial<State>) => void, lost: (is: boolean) => void): () => void {
  let events: EventSource;
  let waiting = 0;
  const begin = () => {
    events = new EventSource("api/events");
    events.onmessage = (event) => {
      lost(false);
      tell(JSON.parse(event.data) as Partial<State>);
    };
    events.onerror = () => {
      lost(true);
      events.close(); // browsers try again by themselves, but not where the answer was an error
      waiting = setTimeout(begin, AGAIN);
    };
  };
  begin();
  return () => (clearTimeout(waiting), events.close());
}

export const runAddress = (name: string, rest: string) => `runs/${encodeURIComponent(name)}/${rest}`;
export const nameOf = (folder: string) => folder.split(/[\\/]/).at(-1) ?? folder;
