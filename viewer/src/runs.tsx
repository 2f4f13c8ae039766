/* The runs of the folder, the jobs, and one run's report. */
import { useEffect, useRef, useState } from "preact/hooks";
import { get, nameOf, post, runAddress, type Job, type Progress, type Run, type State } from "./api";
import { link, replace } from "./address";

const when = (text: string) => text.slice(0, 16).replace("T", " ");
const size = (bytes: number) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);

export function duration(seconds: number): string {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function Runs({ state, open, at = "" }: { state: State; open?: string; at?: string }) {
  const [words, setWords] = useState("");
  const wanted = words.toLowerCase();
  const shown = state.runs.filter((run) => `${run.title} ${run.name} ${run.kind} ${run.model}`.toLowerCase().includes(wanted));
  return (
    <div class={open ? "split opened" : "split"}>
      <div class="list">
        <Jobs state={state} />
        <h2>Runs</h2>
        <p class="controls">
          <label>
            Search <input type="search" value={words} onInput={(event) => setWords(event.currentTarget.value)} />
          </label>
          <output>{shown.length === state.runs.length ? `${shown.length} runs` : `${shown.length} of ${state.runs.length}`}</output>
        </p>
        {state.runs.length === 0 && (
          <p class="note">
            {state.folder} holds no runs yet. <a href={link({ view: "study" })}>Start a study</a>.
          </p>
        )}
        <ul class="runs">{shown.map((run) => <RunItem key={run.name} run={run} current={run.name === open} />)}</ul>
      </div>
      {open && <Opened key={open} name={open} at={at} problem={state.runs.find((run) => run.name === open)?.problem} />}
    </div>
  );
}

function RunItem({ run, current }: { run: Run; current: boolean }) {
  if (run.problem) {
    return (
      <li>
        <b>{run.name}</b>
        <p class="warning">{run.problem}</p>
      </li>
    );
  }
  return (
    <li>
      <a href={link({ run: run.name })} aria-current={current ? "page" : undefined}>
        {run.title || run.name}
      </a>
      <p class="facts">
        <span>
          <b>{run.kind}</b>
        </span>
        {run.model && <span>{run.model}</span>}
        <span>{when(run.created)}</span>
        {run.seconds != null && <span>{duration(run.seconds)}</span>}
      </p>
    </li>
  );
}

/* A run's report in its sandbox; what its views show is taken over into the address, and groups are kept for it. */
function Opened({ name, at, problem }: { name: string; at: string; problem?: string | undefined }) {
  const frame = useRef<HTMLIFrameElement>(null);
  const [opened] = useState(at);
  useEffect(() => {
    const tell = (event: MessageEvent) => {
      const report = frame.current?.contentWindow;
      if (!report || event.source !== report) return;
      const { circuitome: words, keep } = (event.data ?? {}) as { circuitome?: unknown; keep?: { view?: unknown; kept?: unknown } };
      if (typeof words === "string") replace({ run: name, at: words });
      if (!keep) return;
      const answer = (problem: string) => report.postMessage({ kept: { view: keep.view, problem } }, "*");
      post(`runs/${encodeURIComponent(name)}/groups`, { view: keep.view, kept: keep.kept }).then(
        () => answer(""),
        (error: Error) => answer(error.message),
      );
    };
    addEventListener("message", tell);
    return () => removeEventListener("message", tell);
  }, [name]);
  const [files, setFiles] = useState<{ name: string; bytes: number }[]>([]);
  useEffect(() => {
    get<{ files: { name: string; bytes: number }[] }>(`runs/${encodeURIComponent(name)}`).then(
      (run) => setFiles(run.files),
      () => setFiles([]),
    );
  }, [name]);
  if (problem) return <p class="warning report">{problem}</p>;
  const report = runAddress(name, "report");
  return (
    <section class="report" aria-label={`Report of ${name}`}>
      <p class="controls">
        <a href={link({})}>All runs</a>
        <code>{name}</code>
        <a href={report} target="_blank" rel="noreferrer">
          Report alone
        </a>
        <a href={link({ view: "study", study: "validate", run: name })}>Validate</a>
        <a href={link({ view: "study", study: "explain", run: name })}>Explain</a>
      </p>
      <iframe ref={frame} src={opened ? `${report}#${opened}` : report} title={`Report of ${name}`} sandbox="allow-scripts allow-downloads" />
      <details>
        <summary>Files</summary>
        <ul class="files-list">
          {files.map((file) => (
            <li key={file.name}>
              <a href={runAddress(name, `files/${file.name.split("/").map(encodeURIComponent).join("/")}`)} download>
                {file.name}
              </a>{" "}
              <span class="note">{size(file.bytes)}</span>
            </li>
          ))}
        </ul>
      </details>
    </section>
  );
}

function Jobs({ state }: { state: State }) {
  const [all, setAll] = useState(false);
  const [said, setSaid] = useState("");
  if (state.jobs.length === 0) return null;
  const open = state.jobs.filter((job) => job.state === "running" || job.state === "queued");
  const shown = all ? state.jobs : [...open, ...state.jobs.filter((job) => !open.includes(job)).slice(0, 3)];
  const act = (job: Job, what: "cancel" | "again") => post(`jobs/${job.id}/${what}`).then(() => setSaid(""), (error: Error) => setSaid(error.message));
  return (
    <>
      <h2>Jobs</h2>
      {said && <p class="warning">{said}</p>}
      <ul class="runs">{shown.map((job) => <JobItem key={job.id} job={job} progress={state.progress} act={act} />)}</ul>
      {state.jobs.length > shown.length && (
        <button type="button" onClick={() => setAll(true)}>
          All {state.jobs.length} jobs
        </button>
      )}
    </>
  );
}

function JobItem({ job, progress, act }: { job: Job; progress: Progress | null; act: (job: Job, what: "cancel" | "again") => void }) {
  const running = job.state === "running";
  return (
    <li>
      <code class="line">{job.command}</code>
      <p class="facts">
        <span class={`state ${job.state}`}>{job.state}</span>
        {job.state === "done" && <a href={link({ run: nameOf(job.folder) })}>open</a>}
        {(running || job.state === "queued") && (
          <button type="button" onClick={() => act(job, "cancel")}>
            Cancel
          </button>
        )}
        {(job.state === "failed" || job.state === "cancelled") && (
          <button type="button" onClick={() => act(job, "again")}>
            Go on
          </button>
        )}
      </p>
      {running && <Bar progress={progress} />}
      {job.message && <p class="warning">{job.message}</p>}
    </li>
  );
}

function Bar({ progress }: { progress: Progress | null }) {
  if (!progress) return <p class="note">starting</p>;
  const left = progress.whole ? Math.max(0, progress.whole[1] - progress.whole[0]) : 0;
  return (
    <p class="note">
      <progress value={progress.done} max={progress.total || 1} aria-label={progress.what} /> {progress.what} {progress.done}/{progress.total}
      {left > 2 && `, about ${duration(left)} left`}
    </p>
  );
}
