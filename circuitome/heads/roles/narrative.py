"""A circuit in words: one paragraph, made of the measured numbers and nothing else."""

import math
from collections.abc import Callable, Mapping, Sequence

from circuitome.graph.circuits import Circuit
from circuitome.heads.roles import rules
from circuitome.heads.roles.features import intervals
from circuitome.heads.roles.result import Explanation
from circuitome.heads.roles.rules import Features

NAMED = 4
"""Heads of a role that are named."""
STRONG = 3
"""Pairs of roles whose edges are told."""
MOVES = {
    rules.NAME_MOVER: ("to_right", "raised"),
    rules.BACKUP: ("to_right_without_movers", "raised"),
    rules.NEGATIVE: ("to_right", "lowered"),
    rules.SUPPRESSOR: ("to_wrong", "lowered"),
    rules.WRONG_MOVER: ("to_wrong", "raised"),
}
"""By role that attends to an answer: the field of `Features` with that attention, and what it does to its logit."""
INPUTS = {"q": "queries", "k": "keys", "v": "values"}
"""What of a head reads: name and word."""


def summary(explanation: Explanation, task: str = "the task") -> str:
    """What the heads do, in the order in which information passes them, with the numbers that say so.

    Effects are in percent of the gap between clean and ablated metric, negative where heads help.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> explanation = cm.heads.explain(model, cm.ground_truth.true_circuit(model, task), task)
    >>> cm.heads.summary(explanation, task.name).split(". ")[0]
    'Of 4 heads explained in the circuit of 13 edges for known-ioi, 4 have an active role'
    """
    roles = [f"{_heading(explanation, role)}: {said(explanation, role)}." for role in active(explanation)]
    return " ".join([_opening(explanation, task), *roles, *_edges(explanation), *_others(explanation)])


def overview(explanation: Explanation, task: str = "the task") -> str:
    """How many heads have which role, which roles feed which, and what the others do: the summary without evidence."""
    numbers = [f"{len(explanation.by_role[role])} {explanation.title(role)}" for role in active(explanation)]
    opening = _opening(explanation, task)
    opening = f"{opening.removesuffix('.')}: {', '.join(numbers)}." if numbers else opening
    return " ".join([opening, *_edges(explanation), *_others(explanation)])


def active(explanation: Explanation) -> list[str]:
    """The roles that heads were given, but for resting ones, in the order in which information passes them."""
    return [role for role in SENTENCES if role in explanation.by_role]


def said(explanation: Explanation, role: str) -> str:
    """What the heads of an active role do, with the numbers that say so, as a clause."""
    return SENTENCES[role](explanation, role)


def _opening(explanation: Explanation, task: str) -> str:
    number = sum(len(explanation.by_role[role]) for role in active(explanation))
    return (
        f"Of {_count(len(explanation.heads), 'head')} explained in the circuit of {len(explanation.circuit):,} edges "
        f"for {task}, {number} {'has' if number == 1 else 'have'} an active role."
    )


def _others(explanation: Explanation) -> list[str]:
    """What is said of heads that rest or are unclear."""
    resting = sum(len(explanation.by_role.get(role, ())) for role in (rules.FIRST, rules.SELF))
    who = "attends to the first token or itself" if resting == 1 else "attend to the first token or themselves"
    sentences = [f"{_count(resting, 'head')} mostly {who}."] if resting else []
    if rules.UNCLEAR in explanation.by_role:
        sentences.append(_unclear(explanation, explanation.by_role[rules.UNCLEAR]))
    return sentences


def _heading(explanation: Explanation, role: str) -> str:
    """The role and the heads that have it: Name mover (a9.h6, a9.h9)."""
    names, title = explanation.by_role[role], explanation.title(role)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{title[0].upper()}{title[1:]} ({', '.join(names[:NAMED])}{more})"


def _places(explanation: Explanation, role: str) -> list[int]:
    """Where the heads that a sentence names are on the head axis."""
    return [explanation.place(name) for name in explanation.by_role[role][:NAMED]]


def _features(explanation: Explanation, role: str) -> list[Features]:
    """Features of the heads that a sentence names."""
    return [explanation.features[place] for place in _places(explanation, role)]


def _range(values: Sequence[float], form: Callable[[float], str]) -> str:
    """The values from the smallest to the largest."""
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def _share(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{round(100 * value) + 0:d} %"


def _by_relation(field: str, what: str) -> Callable[[Explanation, str], str]:
    def say(explanation: Explanation, role: str) -> str:
        relations = [getattr(features, field) for features in _features(explanation, role)]
        words = f"attention to {what} is {_range([relation.on_prompts for relation in relations], _share)} above chance"
        lost = [relation.lost_when_broken for relation in relations if not math.isnan(relation.lost_when_broken)]
        words += f", of which {_range(lost, _share)} disappears when another token stands there" if lost else ""
        return f"{words}; {_total_effect(explanation, role)}"

    return say


def _total_effect(explanation: Explanation, role: str) -> str:
    places = _places(explanation, role)
    effects = explanation.effects["all_positions"].mean(0)[places] / explanation.measurements.scale
    which = "it" if len(places) == 1 else "one of them"
    return f"ablating {which} at all positions changes the metric by {_range(effects.tolist(), _percent)} of the gap"


def _movers(explanation: Explanation, role: str) -> str:
    field, what = MOVES[role]
    features = _features(explanation, role)
    attention = _range([getattr(head, field) for head in features], _share)
    answer = "wrong" if field == "to_wrong" else "right"
    words = f"attention from the end to the {answer} answer is {attention} above chance, and its logit is {what}"
    if role == rules.BACKUP:
        more = _range([head.direct_change_without_movers.value for head in features], _percent)
        whose = "its direct effect" if len(features) == 1 else "the direct effect of each"
        return f"once the movers are ablated, {words}; {whose} then changes by {more} of the gap"
    return f"{words}; {_direct_effect(explanation, role)}"


def _direct_effect(explanation: Explanation, role: str) -> str:
    places = [explanation.place(name) for name in explanation.by_role[role]]
    samples = explanation.measurements.direct[:, places].sum(1, keepdim=True) / explanation.measurements.scale
    which = "their direct effects sum to" if len(places) > 1 else "its direct effect is"
    return f"{which} {_percent(intervals(samples)[0].value)} of the gap"


def _inhibits(explanation: Explanation, role: str) -> str:
    places, features = _places(explanation, role), _features(explanation, role)
    targets = sorted({explanation.attends_to[place] for place in places})
    attention = _range([head.to_role for head in features], _share)
    removed = _range([head.movers_attention_removed.value for head in features], _percent)
    return (
        f"attention from the end to {' and '.join(targets)} is {attention} above chance; ablating "
        f"{'one of them' if len(places) > 1 else 'it'} at the last position removes {removed} of the movers' attention "
        "to their target, through the movers' queries (100 %: as much as corrupting the prompt removes)"
    )


def _answer_heads(explanation: Explanation, role: str) -> str:
    tokens = sorted({explanation.reads(place) for place in _places(explanation, role)})
    no_answer = "which is no answer" if len(tokens) == 1 else "which are no answers"
    return f"attention from the end goes to {' and '.join(tokens)}, {no_answer}; {_direct_effect(explanation, role)}"


SENTENCES: dict[str, Callable[[Explanation, str], str]] = {
    rules.PREVIOUS: _by_relation("previous", "the token before"),
    rules.DUPLICATE: _by_relation("duplicate", "the earlier copy of a token"),
    rules.INDUCTION: _by_relation("induction", "what stood behind the earlier copy of a token"),
    rules.INHIBITION: _inhibits,
    **dict.fromkeys(MOVES, _movers),
    **dict.fromkeys((rules.ANSWER_HEAD, rules.NEGATIVE_ANSWER_HEAD), _answer_heads),
}
"""By active role, in the order in which information passes them: what is said of its heads behind their names."""
FLOW = tuple(role for role in SENTENCES if SENTENCES[role] is not _answer_heads)
"""Roles whose edges are told."""


def edges_between(explanation: Explanation) -> dict[tuple[str, str, str], int]:
    """How many edges lead from heads of one active role into q, k or v of heads of another, or into the logits.

    By (from, input, to); input and to are both "logits" there.
    """
    roles = {name: role for role in active(explanation) for name in explanation.by_role[role]}
    return class_edges(explanation.circuit, roles)


def class_edges(circuit: Circuit, class_of: Mapping[str, str]) -> dict[tuple[str, str, str], int]:
    """How many edges of a circuit lead from parts of one class to another: sizes of `edges_by_class`."""
    return {key: len(edges) for key, edges in edges_by_class(circuit, class_of).items()}


def edges_by_class(circuit: Circuit, class_of: Mapping[str, str]) -> dict[tuple[str, str, str], list[str]]:
    """The edges of a circuit that lead from parts of one class into an input of parts of another, or into the logits.

    `class_of` names the class of heads and MLPs. By (from, input, to); an input is q, k, v, or in for MLPs.
    """
    graph, edges = circuit.graph, dict[tuple[str, str, str], list[str]]()
    classes = {graph.row(name): some for name, some in class_of.items()}
    for row, start in classes.items():
        for column in circuit.mask[row].nonzero().flatten().tolist():
            node = graph.reader_nodes[column]
            ends = {classes[reader] for reader in graph.rows_of[column] if reader in classes}
            for end in sorted(ends) if node.input else ("logits",):
                name = f"{graph.writers[row]}->{graph.readers[column]}"
                edges.setdefault((start, node.input or "logits", end), []).append(name)
    return edges


def _edges(explanation: Explanation) -> list[str]:
    between = {ends: n for ends, n in edges_between(explanation).items() if ends[0] in FLOW and ends[2] in FLOW}
    ranked = sorted(between.items(), key=lambda item: -item[1])[:STRONG]
    if not ranked:
        return []
    parts = [
        f"{_count(number, 'edge')} from {explanation.title(a)} heads into {INPUTS[kind]} of {explanation.title(b)} ones"
        for (a, kind, b), number in ranked
    ]
    return [f"The circuit holds {', '.join(parts)}."]


def _unclear(explanation: Explanation, names: Sequence[str]) -> str:
    place = explanation.place(names[0])
    verdict = explanation.verdicts[place]
    effect = max((float(samples.mean(0)[place]) for samples in explanation.effects.values()), key=abs)
    return (
        f"{_count(len(names), 'head')} {'has' if len(names) == 1 else 'have'} no clear role; ablating the most "
        f"important, {names[0]}, changes the metric by {_percent(effect / explanation.measurements.scale)} of the gap, "
        f"and it is nearest to {explanation.title(verdict.best)} ({verdict.score:.2f})."
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
