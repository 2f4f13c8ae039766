"""A circuit in words: one paragraph, made of the measured facts and nothing else."""

from collections.abc import Callable, Sequence

from circuitome.heads.roles.features import effects
from circuitome.heads.roles.result import Explanation
from circuitome.heads.roles.rules import (
    BACKUP,
    DUPLICATE,
    FIRST,
    INDUCTION,
    INHIBITION,
    NAME_MOVER,
    NEGATIVE,
    NEGATIVE_WRITER,
    PREVIOUS,
    SELF,
    SUPPRESSOR,
    UNCLEAR,
    WRITER,
    WRONG_MOVER,
    Facts,
)

NAMED = 4
"""Heads of a role that are named."""
FLOW = (PREVIOUS, DUPLICATE, INDUCTION, INHIBITION, NAME_MOVER, BACKUP, NEGATIVE, SUPPRESSOR, WRONG_MOVER)
"""Roles in the order in which information passes them."""
STRONG = 3
"""Edges between roles that are told."""


def account(explanation: Explanation, task: str = "the task") -> str:
    """What the heads do, in the order in which information passes them, with the numbers that say so."""
    roles = explanation.by_role
    resting = [name for role in (FIRST, SELF) for name in roles.get(role, ())]
    named = len(explanation.heads) - len(roles.get(UNCLEAR, ())) - len(resting)
    words = [
        f"Of {_count(len(explanation.heads), 'head')} explained in the circuit of {len(explanation.circuit):,} edges "
        f"for {task}, {named} {'has' if named == 1 else 'have'} an active role."
    ]
    for role in (*FLOW, WRITER, NEGATIVE_WRITER):
        if role in roles:
            words.append(f"{_subject(explanation, role)}: {SENTENCES[role](explanation, role)}.")
    words += _edges(explanation)
    if resting:
        words.append(f"{_count(len(resting), 'head')} mostly {'rests' if len(resting) == 1 else 'rest'}.")
    if UNCLEAR in roles:
        words.append(_unclear(explanation, roles[UNCLEAR]))
    return " ".join(words)


def _subject(explanation: Explanation, role: str) -> str:
    names, title = explanation.by_role[role], explanation.title(role)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{title[0].upper()}{title[1:]} ({', '.join(names[:NAMED])}{more})"


def _facts(explanation: Explanation, role: str) -> list[Facts]:
    """Facts about the heads that a sentence names."""
    return [explanation.facts[explanation.place(name)] for name in explanation.by_role[role][:NAMED]]


def _spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    """The values from the smallest to the largest."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def _share(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{round(100 * value) + 0:d} %"


def _by_relation(field: str, what: str) -> Callable[[Explanation, str], str]:
    def say(explanation: Explanation, role: str) -> str:
        found = [getattr(facts, field) for facts in _facts(explanation, role)]
        words = f"attention to {what} is {_spread([one.here for one in found], _share)} above chance"
        because = [one.because for one in found if one.because == one.because]
        words += f", of which {_spread(because, _share)} goes when another token stands there" if because else ""
        return f"{words}; {_taken_out(explanation, role)}"

    return say


def _taken_out(explanation: Explanation, role: str) -> str:
    places = [explanation.place(name) for name in explanation.by_role[role][:NAMED]]
    lost = explanation.knocks.everywhere.mean(0)[places] / explanation.evidence.scale
    return (
        f"{_spread(lost.tolist(), _percent)} of the gap is lost without {'it' if len(places) == 1 else 'one of them'}"
    )


def _movers(explanation: Explanation, role: str) -> str:
    target, what = {
        NAME_MOVER: ("to_right", "raised"),
        NEGATIVE: ("to_right", "lowered"),
        BACKUP: ("to_right", "raised"),
        SUPPRESSOR: ("to_wrong", "lowered"),
        WRONG_MOVER: ("to_wrong", "raised"),
    }[role]
    found = _facts(explanation, role)
    looks = _spread([getattr(facts, target) for facts in found], _share)
    answer = "right" if target == "to_right" else "wrong"
    words = f"attention from the end to the {answer} answer is {looks} above chance, and its logit is {what}"
    if role == BACKUP:
        more = _spread([facts.without.value for facts in found], _percent)
        return f"{words}; without the movers, each gives the metric {more} of the gap more"
    return f"{words}; {_directly(explanation, role)}"


def _directly(explanation: Explanation, role: str) -> str:
    places = [explanation.place(name) for name in explanation.by_role[role]]
    whole = effects(explanation.evidence.direct[:, places].sum(1, keepdim=True) / explanation.evidence.scale)[0]
    together = "their direct effects sum" if len(places) > 1 else "its direct effect comes"
    return f"{together} to {_percent(whole.value)} of the gap"


def _inhibits(explanation: Explanation, role: str) -> str:
    names = explanation.by_role[role][:NAMED]
    places = sorted({explanation.looks_at[explanation.place(name)] for name in names})
    looks = _spread([facts.to_role for facts in _facts(explanation, role)], _share)
    focus = _spread([facts.focus.value for facts in _facts(explanation, role)], _percent)
    who = "each takes" if len(names) > 1 else "it takes"
    return (
        f"attention from the end to {' and '.join(places)} is {looks} above chance; taken out at the end, {who} from "
        f"the movers, through their queries, {focus} of the focus on their target that the corrupted prompt takes"
    )


def _writers(explanation: Explanation, role: str) -> str:
    places = [explanation.place(name) for name in explanation.by_role[role][:NAMED]]
    reads = sorted({explanation.label(place).rpartition(" from ")[2] for place in places})
    return f"attention from the end goes to {' and '.join(reads)}, no answer; {_directly(explanation, role)}"


SENTENCES: dict[str, Callable[[Explanation, str], str]] = {
    PREVIOUS: _by_relation("previous", "the token before"),
    DUPLICATE: _by_relation("duplicate", "the earlier copy of a token"),
    INDUCTION: _by_relation("induction", "what stood behind the earlier copy of a token"),
    INHIBITION: _inhibits,
    NAME_MOVER: _movers,
    BACKUP: _movers,
    NEGATIVE: _movers,
    SUPPRESSOR: _movers,
    WRONG_MOVER: _movers,
    WRITER: _writers,
    NEGATIVE_WRITER: _writers,
}
"""By role, what is said of its heads behind their names."""


def edges_between(explanation: Explanation) -> dict[tuple[str, str, str], int]:
    """How many edges lead from heads of one role into q, k or v of heads of another: (from, input, to) -> number."""
    graph, found = explanation.circuit.graph, dict[tuple[str, str, str], int]()
    role_of = {graph.row(name): role for role in FLOW for name in explanation.by_role.get(role, ())}
    for row, role in role_of.items():
        for column in explanation.circuit.mask[row].nonzero().flatten().tolist():
            kind = graph.reader_nodes[column].input
            for other in {role_of[reader] for reader in graph.rows_of[column] if reader in role_of}:
                if kind in ("q", "k", "v"):
                    found[role, kind, other] = found.get((role, kind, other), 0) + 1
    return found


def _edges(explanation: Explanation) -> list[str]:
    ranked = sorted(edges_between(explanation).items(), key=lambda item: -item[1])[:STRONG]
    if not ranked:
        return []
    inputs = {"q": "queries", "k": "keys", "v": "values"}
    parts = [
        f"{_count(number, 'edge')} from {explanation.title(a)} heads into {inputs[kind]} of {explanation.title(b)} ones"
        for (a, kind, b), number in ranked
    ]
    return [f"The circuit holds {', '.join(parts)}."]


def _unclear(explanation: Explanation, names: Sequence[str]) -> str:
    place = explanation.place(names[0])
    one = explanation.verdicts[place]
    lost = float(explanation.importance[place]) / explanation.evidence.scale
    rest = "is" if len(names) == 1 else "are"
    return (
        f"{_count(len(names), 'head')} {rest} unclear; the strongest, {names[0]}, has an effect of {_percent(lost)} of "
        f"the gap and is nearest to {explanation.title(one.best)} ({one.score:.2f})."
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
