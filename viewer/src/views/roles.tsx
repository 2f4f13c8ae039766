/* Classes of heads and MLPs as boxes with arrows: members and their evidence, and the edges behind an arrow, on click. */
import { useEffect } from "preact/hooks";
import { useShown } from "../shared/address";
import { Adopted } from "../shared/adopted";
import { csv, Files } from "../shared/files";
import type { ViewProps } from "../shared/registry";

type Role = { name: string; members: string[]; about: string; position: string };
type Arrow = [string, string, string, number | null];
type Data = { classes: Role[]; arrows: Arrow[]; edges: string[][] };

export default function Roles({ id, data, title, drawing }: ViewProps<Data>) {
  const [{ role, arrow }, show] = useShown(id, { role: "", arrow: -1 });
  const chosen = data.classes.find((some) => some.name === role);
  const pick = (event: Event) => {
    const item = (event.target as Element).closest<SVGElement>("[data-class], [data-arrow]");
    if (!item) return show({ role: "", arrow: -1 });
    show(item.dataset.class === undefined ? { role: "", arrow: Number(item.dataset.arrow) } : { role: item.dataset.class, arrow: -1 });
  };
  const press = (event: KeyboardEvent) => {
    if (event.key === "Escape") show({ role: "", arrow: -1 });
    else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      pick(event);
    }
  };
  useEffect(() => {
    drawing!.setAttribute("role", "group");
    for (const item of drawing!.querySelectorAll<SVGElement>("[data-class], [data-arrow]")) {
      item.setAttribute("role", "button");
      item.setAttribute("tabindex", "0");
      if (item.dataset.class === undefined) item.setAttribute("aria-label", item.querySelector("title")!.textContent!); // a box has its text
    }
  }, [drawing]);
  useEffect(() => {
    for (const item of drawing!.querySelectorAll<SVGElement>("[data-class], [data-arrow]")) item.classList.toggle("chosen", item.dataset.class === undefined ? Number(item.dataset.arrow) === arrow : item.dataset.class === role);
  }, [drawing, role, arrow]);
  const rows = () => [["from", "to", "input", "strength", "edges"], ...data.arrows.map((some, i) => [...some, (data.edges[i] ?? []).join(" ")])];
  return (
    <div class="stage">
      <figure onClick={pick} onKeyDown={press}>
        <Adopted drawing={drawing!} label={title} />
        <Files name={title} svg={() => drawing} texts={{ csv: () => csv(rows()) }} />
      </figure>
      <aside>
        <div class="panel" role="status">
          {chosen ? <RolePanel data={data} role={chosen} show={show} /> : data.arrows[arrow] ? <ArrowPanel arrow={data.arrows[arrow]!} edges={data.edges[arrow] ?? []} /> : <p class="note">Click a box for its members and their evidence, an arrow for its edges.</p>}
        </div>
      </aside>
    </div>
  );
}

function RolePanel({ data, role, show }: { data: Data; role: Role; show: (change: { role: string; arrow: number }) => void }) {
  const side = (heading: string, mine: 0 | 1) => {
    const arrows = data.arrows.flatMap((arrow, i) => (arrow[mine] === role.name ? [{ arrow, i }] : []));
    return (
      arrows.length > 0 && (
        <>
          <h3>{heading}</h3>
          <ol>
            {arrows.map(({ arrow, i }) => (
              <li key={i}>
                <button type="button" class="name" onClick={() => show({ role: "", arrow: i })}>
                  {arrow[1 - mine]}
                </button>{" "}
                <span class="note">
                  {arrow[2]} {arrow[3] ?? ""}
                </span>
              </li>
            ))}
          </ol>
        </>
      )
    );
  };
  return (
    <>
      <h3>{role.name}</h3>
      {role.about && <p>{role.about}</p>}
      {role.position && <p class="note">at {role.position}</p>}
      <h3>Members</h3>
      <ol>
        {role.members.map((member) => (
          <li key={member}>
            <Evidence member={member} />
          </li>
        ))}
      </ol>
      {side("Reads from", 1)}
      {side("Leads to", 0)}
    </>
  );
}

/* A member, with a way to its evidence where the page has that: a fold called by its name. */
function Evidence({ member }: { member: string }) {
  const fold = [...document.querySelectorAll("details > summary")].find((summary) => summary.textContent!.startsWith(`${member}: `))?.parentElement as HTMLDetailsElement | undefined;
  if (!fold) return <span class="name">{member}</span>;
  const open = () => {
    fold.open = true;
    fold.scrollIntoView({ block: "center" });
    fold.querySelector("summary")!.focus({ preventScroll: true });
  };
  return (
    <>
      <button type="button" class="name" onClick={open} title="To its evidence">
        {member}
      </button>{" "}
      <span class="note">{fold.querySelector("summary")!.textContent!.slice(member.length + 2)}</span>
    </>
  );
}

function ArrowPanel({ arrow: [from, to, through, strength], edges }: { arrow: Arrow; edges: string[] }) {
  return (
    <>
      <h3>
        {from} {"\u2192"} {to}
      </h3>
      <p>
        through {through}
        {strength !== null && `: ${strength}`}
      </p>
      {edges.length > 0 && (
        <>
          <h3>Edges{strength !== null && strength > edges.length ? `, the first ${edges.length}` : ""}</h3>
          <ol>
            {edges.map((edge) => (
              <li key={edge} class="name">
                {edge}
              </li>
            ))}
          </ol>
        </>
      )}
    </>
  );
}
