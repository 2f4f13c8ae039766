/* A prompt in a model, now: next tokens, heads to switch off, attention, the lens, the route. */
import { useEffect, useRef, useState } from "preact/hooks";
import { post, type Answer, type Next, type Route, type Stage } from "./api";
import { replace, type View } from "./address";
import { AttentionView } from "./shared/attention";
import { Files } from "./shared/files";
import { RoutesView, type RouteShown } from "./shared/routes";
import { shown } from "./shared/tokens";

const EXAMPLE = "When Mary and John went to the store, John gave a drink to";
const share = (value: number) => `${(100 * value).toFixed(1)} %`;
/* The colour behind a text: the stronger, the more of it, as far as the text can still be read. */
const shade = (value: number) => `color-mix(in srgb, var(--helps) calc(${value.toFixed(2)} * var(--full)), transparent)`;
/* What a view keeps, as texts of the address; -1 stands for nothing. */
const texts = (change: object): View => Object.fromEntries(Object.entries(change).map(([name, value]) => [name, value === -1 ? "" : String(value)]));
const UNTRACED = { route: "", threshold: "", edge: "", node: "" };
const names = (text: string | undefined) => (text ?? "").split(",").filter(Boolean);

/* The answer to a request; while another is under way the latest waits, and those between are left out. */
function useAnswer(request: { model: string; prompt: string; heads: string[]; ablate: string[] } | null) {
  const [answer, setAnswer] = useState<Answer | null>(null);
  const [problem, setProblem] = useState("");
  const [waiting, setWaiting] = useState(false);
  const [milliseconds, setMilliseconds] = useState(0);
  const queue = useRef<{ busy: boolean; next: typeof request }>({ busy: false, next: null });
  const words = JSON.stringify(request);

  async function work() {
    const { current } = queue;
    if (current.busy) return;
    current.busy = true;
    setWaiting(true);
    while (current.next) {
      const asked = current.next;
      current.next = null;
      const start = performance.now();
      try {
        setAnswer(await post<Answer>("prompt", asked));
        setProblem("");
      } catch (error) {
        setProblem((error as Error).message);
      }
      setMilliseconds(performance.now() - start);
    }
    current.busy = false;
    setWaiting(false);
  }

  useEffect(() => {
    if (!request) return;
    queue.current.next = request;
    void work();
  }, [words]);
  return { answer, problem, waiting, milliseconds };
}

export function PromptBox({ view, models }: { view: View; models: string[] }) {
  const model = view.model ?? "smollm2-135m";
  const prompt = view.prompt ?? "";
  const heads = names(view.heads);
  const off = names(view.off);
  const [typed, setTyped] = useState(prompt || EXAMPLE);
  const [chosen, setChosen] = useState(model);
  const attention = useRef<HTMLElement>(null);
  const [clicks, setClicks] = useState<"off" | "show">("off");
  const { answer, problem, waiting, milliseconds } = useAnswer(prompt ? { model, prompt, heads, ablate: off } : null);

  const set = (change: View) => replace({ ...view, view: "prompt", model, prompt, ...change });
  const toggled = (list: string[], name: string) => (list.includes(name) ? list.filter((other) => other !== name) : [...list, name]).join(",");
  const click = (name: string) => set(clicks === "off" ? { off: toggled(off, name) } : { heads: toggled(heads, name) });

  function ask(event: Event) {
    event.preventDefault();
    const route = chosen === model && typed === prompt ? {} : UNTRACED;
    set({ model: chosen, prompt: typed, ...route, ...(chosen === model ? {} : { heads: "", off: "" }) });
  }

  return (
    <div class="prompt-box">
      <form onSubmit={ask}>
        <label for="prompt-text">Prompt</label>
        <textarea id="prompt-text" rows={2} value={typed} spellcheck={false} onInput={(event) => setTyped(event.currentTarget.value)} onKeyDown={(event) => event.key === "Enter" && !event.shiftKey && ask(event)} />
        <p class="controls">
          <label>
            Model <input type="text" list="models" value={chosen} onInput={(event) => setChosen(event.currentTarget.value)} />
          </label>
          <datalist id="models">
            {models.map((name) => (
              <option key={name} value={name} />
            ))}
          </datalist>
          <button type="submit" class="main">
            Run
          </button>
          <output aria-live="polite">{waiting ? "running" : answer ? `${Math.round(milliseconds)} ms` : ""}</output>
        </p>
      </form>
      {problem && (
        <p class="warning" role="alert">
          {problem}
        </p>
      )}
      {answer && (
        <div class={waiting ? "answer stale" : "answer"}>
          <NextTokens rows={answer.next} off={off} clear={() => set({ off: "" })} toggle={(name) => set({ off: toggled(off, name) })} />
          <section>
            <h2>Heads</h2>
            <p class="controls">
              <fieldset>
                <legend>A click</legend>
                {(["off", "show"] as const).map((what) => (
                  <label key={what}>
                    <input type="radio" name="clicks" checked={clicks === what} onChange={() => setClicks(what)} /> {what === "off" ? "switches off" : "shows attention"}
                  </label>
                ))}
              </fieldset>
            </p>
            <Heads answer={answer} off={off} heads={heads} click={click} />
            <p class="note">Blocks upwards, heads across. Darker: more attention from the last token to tokens between the first and itself.</p>
          </section>
          <section class="wide">
            <h2>Attention</h2>
            <figure ref={attention}>
              <AttentionView tokens={answer.tokens} heads={Object.entries(answer.attention)} head={view.head ?? ""} query={Number(view.query ?? -1)} choose={(change) => set(texts(change))} />
              <Files name="attention" svg={() => attention.current!.querySelector<SVGSVGElement>("svg.arcs")} />
            </figure>
          </section>
          <Lens stages={answer.lens} />
          <Routes key={`${model} ${prompt}`} model={model} prompt={prompt} view={view} set={set} off={off} toggle={(name) => set({ off: toggled(off, name) })} />
        </div>
      )}
    </div>
  );
}

function NextTokens({ rows, off, clear, toggle }: { rows: Next[]; off: string[]; clear: () => void; toggle: (name: string) => void }) {
  const [typed, setTyped] = useState("");
  function add(event: Event) {
    event.preventDefault();
    if (typed.trim() && !off.includes(typed.trim())) toggle(typed.trim());
    setTyped("");
  }
  return (
    <section>
      <h2>Next tokens</h2>
      <table class="next">
        <thead>
          <tr>
            <th scope="col">token</th>
            <th scope="col" class="num">probability</th>
            {off.length > 0 && (
              <th scope="col" class="num">
                switched off
              </th>
            )}
            <th scope="col" aria-label="bar" />
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={row.token}>
              <td>
                <code>{shown(row.token)}</code>
              </td>
              <td class="num">{share(row.probability)}</td>
              {off.length > 0 && <td class={`num ${(row.ablated ?? 0) > row.probability ? "hurts" : "helps"}`}>{share(row.ablated ?? 0)}</td>}
              <td class="bar">
                <meter value={row.probability} max={1} aria-hidden="true" />
                {off.length > 0 && <meter class="changed" value={row.ablated ?? 0} max={1} aria-hidden="true" />}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <form class="controls" onSubmit={add}>
        <label>
          Switch off <input type="text" size={9} placeholder="m5.n123" value={typed} onInput={(event) => setTyped(event.currentTarget.value)} spellcheck={false} />
        </label>
        <span class="chips">
          {off.map((name) => (
            <button key={name} type="button" class="chip" onClick={() => toggle(name)} aria-label={`Switch ${name} on again`}>
              {name} {"\u00d7"}
            </button>
          ))}
        </span>
        {off.length > 1 && (
          <button type="button" onClick={clear}>
            All on
          </button>
        )}
      </form>
      <p class="note">A part that is switched off writes zero at every token: a head such as a9.h6, an MLP m9, a neuron m9.n123.</p>
    </section>
  );
}

function Heads({ answer, off, heads, click }: { answer: Answer; off: string[]; heads: string[]; click: (name: string) => void }) {
  const layers = [...answer.looks.keys()].reverse();
  const grid = useRef<HTMLTableElement>(null);
  const [at, setAt] = useState<[number, number]>([0, 0]);

  /* One tab stop; arrows move. */
  function move(event: KeyboardEvent) {
    const step = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key];
    if (!step) return;
    event.preventDefault();
    const layer = Math.min(Math.max(at[0] + step[0]!, 0), answer.shape.layers - 1);
    const head = Math.min(Math.max(at[1] + step[1]!, 0), answer.shape.heads - 1);
    setAt([layer, head]);
    grid.current?.querySelector<HTMLButtonElement>(`[data-head="a${layer}.h${head}"]`)?.focus();
  }

  return (
    <div class="scroll">
      <table class="heads" ref={grid} onKeyDown={move} aria-label="Heads of the model">
        <tbody>
          {layers.map((layer) => (
            <tr key={layer}>
              <th scope="row">{layer}</th>
              {answer.looks[layer]!.map((value, head) => {
                const name = `a${layer}.h${head}`;
                const marks = `${off.includes(name) ? "off" : ""} ${heads.includes(name) || name in answer.attention ? "shown" : ""}`;
                return (
                  <td key={head}>
                    <button
                      type="button"
                      class={`cell ${marks}`}
                      data-head={name}
                      tabIndex={at[0] === layer && at[1] === head ? 0 : -1}
                      aria-pressed={off.includes(name)}
                      aria-label={`${name}, attends ${share(value)} to earlier tokens`}
                      title={`${name}: ${share(value)}`}
                      style={{ "--share": String(Math.min(1, value)) }}
                      onClick={() => {
                        setAt([layer, head]);
                        click(name);
                      }}
                    />
                  </td>
                );
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function Lens({ stages }: { stages: Stage[] }) {
  return (
    <section>
      <h2>Logit lens</h2>
      <p class="note">At the last token: what the model would say next if it ended there.</p>
      <div class="scroll tall" tabIndex={0} role="group" aria-label="Logit lens">
        <table>
          <tbody>
            {[...stages].reverse().map((stage) => (
              <tr key={stage.after}>
                <th scope="row" class="name">
                  {stage.after}
                </th>
                {stage.tokens.map(([token, value], place) => (
                  <td key={place} style={{ background: shade(value) }}>
                    <code>{shown(token)}</code> <span class="num">{share(value)}</span>
                  </td>
                ))}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}

type RoutesProps = { model: string; prompt: string; view: View; set: (change: View) => void; off: string[]; toggle: (name: string) => void };

/* The route, once it is asked for; a link to it asks at once. */
function Routes({ model, prompt, view, set, off, toggle }: RoutesProps) {
  const [route, setRoute] = useState<(Route & { svg: SVGSVGElement }) | null>(null);
  const [said, setSaid] = useState("");
  function ask() {
    setSaid("tracing");
    post<Route>("prompt", { model, prompt, routes: true }).then(
      (found) => {
        setRoute({ ...found, svg: drawn(found.drawing) });
        setSaid("");
      },
      (error: Error) => setSaid(error.message),
    );
  }
  useEffect(() => void (view.route && ask()), []);
  const number = (text: string | undefined, otherwise: number) => (text && Number.isFinite(Number(text)) ? Number(text) : otherwise);
  return (
    <section class="wide routes">
      <h2>Route</h2>
      <p class="note">Which way the information for this prediction took, with nothing switched off. Columns are tokens, rows blocks; a circle is the residual stream, a square an MLP, blue lines are attention. Lines are as wide as they are important.</p>
      {!route && (
        <p>
          <button type="button" onClick={() => (set({ route: "traced" }), ask())}>
            Trace
          </button>{" "}
          {said}
        </p>
      )}
      {route && (
        <>
          <RoutesView
            data={route.data}
            title={route.title}
            drawing={route.svg}
            threshold={number(view.threshold, route.data.threshold)}
            edge={number(view.edge, -1)}
            node={view.node ?? ""}
            show={(change: Partial<RouteShown>) => set(texts(change))}
          />
          <p class="controls">
            Neurons on the route:
            <span class="chips">
              {route.neurons.map((name) => (
                <button key={name} type="button" class="chip" aria-pressed={off.includes(name)} onClick={() => toggle(name)}>
                  {name}
                </button>
              ))}
            </span>
          </p>
        </>
      )}
    </section>
  );
}

/* The server draws as in its reports, with every text escaped; the page's policy lets no script in it run. */
function drawn(text: string): SVGSVGElement {
  const holder = document.createElement("div");
  holder.innerHTML = text;
  return holder.querySelector("svg")!;
}
