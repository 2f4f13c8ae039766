/* The local app: runs and jobs, forms of studies, a prompt box. */
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { follow, get, type State, type Studies } from "./api";
import { link, useView } from "./address";
import { PromptBox } from "./prompt";
import { Runs } from "./runs";
import { NewStudy } from "./study";

function App() {
  const view = useView();
  const [state, setState] = useState<State | null>(null);
  const [lost, setLost] = useState(false);
  const [models, setModels] = useState<string[]>([]);
  useEffect(() => follow((part) => setState((before) => ({ ...before, ...part }) as State), setLost), []);
  useEffect(() => void get<Studies>("studies").then((studies) => setModels(studies.known.model ?? []), () => {}), []);
  const place = view.view ?? "";
  document.title = [view.run ?? view.study ?? view.prompt?.slice(0, 40) ?? place, "circuitome"].filter(Boolean).join(" | ");
  const busy = state?.jobs.filter((job) => job.state === "running" || job.state === "queued").length ?? 0;
  const tab = (name: string, words: string) => (
    <a href={link(name ? { view: name } : {})} aria-current={place === name ? "page" : undefined}>
      {words}
    </a>
  );
  return (
    <>
      <header class="top bar">
        <p class="brand">circuitome</p>
        <nav aria-label="Views">
          {tab("", busy ? `Runs (${busy} to do)` : "Runs")}
          {tab("study", "New study")}
          {tab("prompt", "Prompt")}
        </nav>
      </header>
      {lost && (
        <p class="warning" role="alert">
          The server does not answer. Start it again with circuitome app; queued jobs go on, and this page with them if the address is the same.
        </p>
      )}
      {state?.problem && (
        <p class="warning" role="alert">
          {state.problem}
        </p>
      )}
      <main>
        {place === "prompt" ? (
          <PromptBox view={view} models={models} />
        ) : !state ? (
          <p class="note">Reading the runs</p>
        ) : place === "study" ? (
          <NewStudy view={view} runs={state.runs} />
        ) : (
          <Runs state={state} {...(view.run ? { open: view.run, at: view.at ?? "" } : {})} />
        )}
      </main>
    </>
  );
}

render(<App />, document.getElementById("app")!);
document.documentElement.classList.add("ready");
