/* A form for each study, made from what the server says of its settings. */
import { useEffect, useMemo, useState } from "preact/hooks";
import { get, post, type Field, type Run, type Studies, type Study } from "./api";
import { go, link, type View } from "./address";

type Values = Record<string, string>;

export function NewStudy({ view, runs }: { view: View; runs: Run[] }) {
  const [studies, setStudies] = useState<Studies | null>(null);
  const [problem, setProblem] = useState("");
  useEffect(() => void get<Studies>("studies").then(setStudies, (error: Error) => setProblem(error.message)), []);
  if (problem) return <p class="warning">{problem}</p>;
  if (!studies) return <p class="note">Reading the list of studies</p>;
  const chosen = studies.studies.find((study) => study.name === view.study);
  return (
    <div class="split opened">
      <div class="list">
        <h2>Studies</h2>
        <ul class="runs">
          {studies.studies.map((study) => (
            <li key={study.name}>
              <a href={link({ view: "study", study: study.name })} aria-current={study === chosen ? "page" : undefined}>
                {study.name}
              </a>
              <p class="note">{study.about}</p>
            </li>
          ))}
        </ul>
      </div>
      {chosen ? <Form key={chosen.name} study={chosen} known={studies.known} given={view} runs={runs} /> : <p class="note report">Choose a study; each is also a command of circuitome.</p>}
    </div>
  );
}

function Form({ study, known, given, runs }: { study: Study; known: Record<string, string[]>; given: View; runs: Run[] }) {
  const [values, setValues] = useState<Values>(() => Object.fromEntries(study.fields.map((field) => [field.name, given[field.name] ?? field.default])));
  const [problem, setProblem] = useState("");
  const [sending, setSending] = useState(false);
  const suggested = useMemo(() => ({ ...known, run: runs.filter((run) => !run.problem).map((run) => run.name) }), [known, runs]);
  const change = (name: string, value: string) => setValues((before) => ({ ...before, [name]: value }));

  async function start(event: Event) {
    event.preventDefault();
    setSending(true);
    setProblem("");
    try {
      await post("jobs", { study: study.name, values });
      go({});
    } catch (error) {
      setProblem((error as Error).message);
    } finally {
      setSending(false);
    }
  }

  const row = (field: Field) => <Row key={field.name} field={field} value={values[field.name] ?? ""} known={suggested[field.name as "run"]} change={change} />;
  const first = study.fields.filter((field) => field.required || study.fields.indexOf(field) === 0 || field.name === "model");
  const common = study.fields.filter((field) => field.common && !first.includes(field));
  const others = study.fields.filter((field) => !field.common && !first.includes(field));
  return (
    <form class="report study" onSubmit={start}>
      <h2>{study.name}</h2>
      <p class="note">{study.about}</p>
      {first.map(row)}
      {others.length > 0 && (
        <details open={others.length < 7 || others.some((field) => field.name in given)}>
          <summary>Options</summary>
          {others.map(row)}
        </details>
      )}
      <details>
        <summary>Device, precision, memory, seed</summary>
        {common.map(row)}
      </details>
      {problem && (
        <p class="warning" role="alert">
          {problem}
        </p>
      )}
      <p>
        <button type="submit" class="main" disabled={sending}>
          Start
        </button>
      </p>
    </form>
  );
}

function Row({ field, value, known, change }: { field: Field; value: string; known?: string[] | undefined; change: (name: string, value: string) => void }) {
  const id = `field-${field.name}`;
  const list = known?.length ? `${id}-known` : undefined;
  return (
    <div class="row">
      <label for={id}>{field.label}</label>
      <div>
        {field.kind === "flag" ? (
          <input id={id} type="checkbox" checked={value !== ""} aria-describedby={`${id}-about`} onChange={(event) => change(field.name, event.currentTarget.checked ? "true" : "")} />
        ) : field.kind === "choice" ? (
          <select id={id} value={value} aria-describedby={`${id}-about`} onChange={(event) => change(field.name, event.currentTarget.value)}>
            {["", ...field.choices].map((choice) => (
              <option key={choice} value={choice}>
                {choice || "default"}
              </option>
            ))}
          </select>
        ) : (
          <input
            id={id}
            type="text"
            inputMode={field.kind === "number" ? "decimal" : undefined}
            list={list}
            value={value}
            required={field.required}
            autocomplete="off"
            spellcheck={false}
            aria-describedby={`${id}-about`}
            onInput={(event) => change(field.name, event.currentTarget.value)}
          />
        )}
        {list && (
          <datalist id={list}>
            {known?.map((name) => (
              <option key={name} value={name} />
            ))}
          </datalist>
        )}
        <p class="note" id={`${id}-about`}>
          {field.about}
        </p>
      </div>
    </div>
  );
}
