"""Which prompts lend which others the value of a variable, what the causal model then answers, and what the model says.

Every prompt that the model does is once a base, with another prompt as its source. Sources are drawn so that for every
variable the answer of the causal model changes in a stated share of the pairs: where it never changes, a place at which
nothing happens would look like the variable's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.causal.causal_model import CausalModel
from circuitome.causal.sites import values_at
from circuitome.causal.suffixes import Passes, passed
from circuitome.engine.batches import tokens_within
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, NumericsError, TaskError, unknown_name
from circuitome.models.model import Model
from circuitome.results import Estimate, mean
from circuitome.tasks.task import Task, continuation

CHANGED = 0.5
"""Share of pairs in which the answer of the causal model is to change."""
TRIED = 65
"""Prompts that are looked at as sources of one base."""
FEWEST = 8
"""Prompts that the model must do, so that a share of them says something."""


@dataclass(frozen=True, eq=False)
class Trials:
    """Pairs of a base and a source prompt, and what a causal model says of them."""

    setting: Setting
    """The model, and the prompts."""
    causal: CausalModel
    """The causal model."""
    variables: tuple[str, ...]
    """The variables whose value is interchanged."""
    roles: tuple[str, ...]
    """Named positions that every prompt has, first to last."""
    positions: Int[Tensor, "prompts roles"]
    """Where they are in each prompt."""
    right_alone: Float[Tensor, " prompts"]
    """1.0 for each prompt whose answer is the causal model's before anything is interchanged."""
    base: Int[Tensor, " pairs"]
    """The prompt that is run, of each pair."""
    source: Int[Tensor, " pairs"]
    """The prompt that the value comes from."""
    tokens: tuple[int, ...]
    """All answers of the causal model and of the task, wrong ones too: the model's answer is the likeliest of them."""
    expected: Bool[Tensor, "variables pairs tokens"]
    """Which of them the causal model allows after the interchange of each variable."""
    shuffled: Bool[Tensor, "variables pairs tokens"]
    """The same with values from the sources of other pairs: a control."""
    before: Bool[Tensor, "pairs tokens"]
    """Which of them the causal model allows on the base alone."""
    draws: "Draws"
    """Where further sources come from."""
    recorded: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """By kind of sites and block: what each prompt shows there, [prompts, roles, head, width]; filled when needed."""

    @property
    def task(self) -> Task:
        """The prompts."""
        return self.setting.task

    @property
    def model(self) -> Model:
        """The model."""
        return self.setting.model

    @property
    def groups(self) -> tuple[int, ...]:
        """Each pair's template, that of its base."""
        return tuple(self.task.groups[row] for row in self.base.tolist())

    @property
    def base_accuracy(self) -> Estimate:
        """Share of all prompts on which the model answers as the causal model does."""
        return mean(self.right_alone, "share", groups=self.task.groups)

    def on(self, model: Model) -> "Trials":
        """The same pairs on another model."""
        return replace(self, setting=self.setting.but(model=model), recorded={})

    def redrawn(self, seed: int) -> "Trials":
        """The same bases, in the same order, with other sources."""
        return replace(self, **self.draws.drawn(self.base.tolist(), seed, self.tokens))

    def changed(self, variable: str) -> float:
        """Share of pairs in which no answer that was right on the base is right after the interchange."""
        kept = self.expected[self.index(variable)] & self.before
        return float((~kept.any(1)).float().mean())

    def majority(self, variable: str) -> float:
        """The largest share of pairs in which one and the same answer is right: what a constant answer would reach."""
        return float(self.expected[self.index(variable)].float().mean(0).max())

    def shuffled_right(self, variable: str, said: Int[Tensor, " pairs"], times: int) -> Float[Tensor, " pairs"]:
        """How often, of `times` deals of all sources, each pair's answer is right with the value of its new source."""
        number, base, source = self.index(variable), self.base.tolist(), self.source.tolist()
        right = torch.zeros(len(base))
        for seed in range(times):
            allowed = self.draws.allowed(base, self.draws.others(base, source, seed))[number]
            answers = [self.tokens[token] for token in said.tolist()]
            right += torch.tensor([answer in ids for answer, ids in zip(answers, allowed, strict=True)]).float()
        return right / times

    def index(self, variable: str) -> int:
        """Number of a variable. Raises `UnknownNameError`."""
        if variable not in self.variables:
            raise unknown_name("variable", variable, self.variables)
        return self.variables.index(variable)

    def column(self, role: str) -> int:
        """Number of a role. Raises `UnknownNameError`."""
        if role not in self.roles:
            raise unknown_name(
                "position",
                role,
                self.roles,
                "They are roles that every prompt has, at or in front of the token that is read.",
            )
        return self.roles.index(role)

    def chunks(self, most: int | None = None, *, gradients: bool = False) -> Iterator[Int[Tensor, " some"]]:
        """The pairs by number, alike in length together, as many as the budget allows, at most `most`."""
        longest = max(len(pair.clean) for pair in self.task.pairs)
        size = max(1, tokens_within(self.model, self.setting.max_memory, gradients=gradients) // longest)
        lengths = torch.tensor([self.task.pairs[row].answer_position for row in self.base.tolist()])
        yield from lengths.argsort(stable=True).split(min(size, most or size))

    def bases(self, chunk: Int[Tensor, " some"]) -> Passes:
        """The base prompts of some pairs, run."""
        return passed(self.model, self.task, self.base[chunk].tolist())

    def values(self, kind: str, layer: int) -> Float[Tensor, "prompts roles head width"]:
        """What each prompt shows at the sites of a kind in a block, at its roles; of prompts that are in no pair, 0.

        The first call for a kind runs the prompts, once for all blocks.
        """
        if (kind, layer) not in self.recorded:
            self._record(kind)
        return self.recorded[kind, layer]

    def _record(self, kind: str) -> None:
        for run in passes(self.setting, self.base.tolist()):
            at, here = self.positions[list(run.rows)], list(run.rows)
            within = torch.arange(len(here))[:, None]
            for layer in range(len(self.model.blocks) + (kind == "resid")):
                picked = values_at(self.model, run.activations, kind, layer)[within, at]
                whole = self.recorded.setdefault((kind, layer), picked.new_zeros(len(self.task), *picked.shape[1:]))
                whole[here] = picked

    def differences(self, kind: str, layer: int, role: int, chunk: Int[Tensor, " some"]) -> Float[Tensor, "some h w"]:
        """Value on the source minus value on the base of some pairs, at a role; float32."""
        values = self.values(kind, layer)[:, role].float()
        return values[self.source[chunk]] - values[self.base[chunk]]

    def logits(self, final: Float[Tensor, "copies batch d_model"]) -> Float[Tensor, "copies batch tokens"]:
        """Logits of the answers for final residuals, float32. Raises `NumericsError` where they are no numbers."""
        logits = self.model.unembed(final.flatten(0, 1), list(self.tokens)).float().unflatten(0, final.shape[:2])
        if not bool(logits.isfinite().all()):
            raise NumericsError(f"{self.model.name} gives logits that are no finite numbers under an interchange.")
        return logits


def passes(setting: Setting, rows: Sequence[int]) -> Iterator[Passes]:
    """The clean prompts `rows`, run in batches that fit the budget."""
    order = sorted(rows, key=lambda row: len(setting.task.pairs[row].clean))
    longest = len(setting.task.pairs[order[-1]].clean)
    size = max(1, tokens_within(setting.model, setting.max_memory, gradients=False) // longest)
    for start in range(0, len(order), size):
        yield passed(setting.model, setting.task, order[start : start + size])


def trials(setting: Setting, causal: CausalModel, variables: Sequence[str] = (), *, changed: float = CHANGED) -> Trials:
    """Pairs for the interchange of `variables` (all that are not the answer), one for every prompt that the model does.

    Raises `UnknownNameError` for a variable that is none, `InputError` where the model does less than half of the
    prompts or none changes an answer, and for an answer that is not one token.
    """
    model, task = setting.model, setting.task
    for name in variables:
        causal.check_name(name)
    variables = tuple(variables) or causal.variables or (causal.output,)
    inputs = [causal.inputs_of(model, pair) for pair in task.pairs]
    alone = [causal.run(given) for given in inputs]
    says = _Answers(setting, causal, inputs)
    answers = [says.ids(values[causal.output], given) for values, given in zip(alone, inputs, strict=True)]
    theirs = [token for pair in task.pairs for token in (*pair.answers, *pair.wrongs)]
    tokens = tuple(sorted({*theirs}.union(*answers)))
    right = _right_alone(setting, tokens, answers)
    kept = _enough([row for row, good in enumerate(right.tolist()) if good], task, model)
    draws = Draws(setting, causal, variables, tuple(inputs), tuple(alone), says, changed)
    Random(setting.seed).shuffle(kept)
    roles, positions = _positions(causal, task)
    return Trials(
        setting=setting,
        causal=causal,
        variables=variables,
        roles=roles,
        positions=positions,
        right_alone=right,
        base=torch.tensor(kept),
        draws=draws,
        **draws.drawn(kept, setting.seed, tokens),
    )


class _Answers:
    """Token ids of what a causal model answers."""

    def __init__(self, setting: Setting, causal: CausalModel, inputs: Sequence[dict[str, Any]]) -> None:
        self.setting, self.causal = setting, causal
        model, task = setting.model, setting.task
        # A text that stands in a prompt is the token that stands there, however the tokenizer would spell it alone.
        spelled = {token for pair in task.pairs for token in (*pair.clean, *pair.answers, *pair.wrongs)}
        self.known = {model.decode([token]): token for token in sorted(spelled, reverse=True)}

    def ids(self, value: Any, inputs: dict[str, Any]) -> frozenset[int]:
        """The tokens that a value of the answer allows. Raises `InputError` where it is not of one token each."""
        texts = [value] if isinstance(value, str) else list(value) if isinstance(value, tuple | list | set) else None
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(
                f"The variable {self.causal.output!r} must be a text, or several of which each is right; it is "
                f"{value!r} for {_shown(inputs)}."
            )
        return frozenset(self._id(text, inputs) for text in texts)

    def _id(self, text: str, inputs: dict[str, Any]) -> int:
        if text not in self.known:
            spelled = continuation(self.setting.model, text)
            if len(spelled) != 1:
                raise InputError(
                    f"The model cannot say {text!r}, the value of {self.causal.output!r} for {_shown(inputs)}, in one "
                    f"token: its tokenizer makes {len(spelled)} of it. Let the causal model give the first of them."
                )
            self.known[text] = spelled[0]
        return self.known[text]


@dataclass(frozen=True, eq=False)
class Draws:
    """Draws sources for bases, and knows what the causal model answers on one prompt with a value from another."""

    setting: Setting
    """The prompts."""
    causal: CausalModel
    """The causal model."""
    variables: tuple[str, ...]
    """The variables whose value is interchanged."""
    inputs: tuple[dict[str, Any], ...]
    """Inputs of each prompt."""
    alone: tuple[dict[str, Any], ...]
    """All values on each prompt."""
    says: _Answers
    """Token ids of answers."""
    share: float
    """Share of pairs in which the answer of the causal model is to change."""
    kept: dict[tuple[str, int, Any], frozenset[int]] = field(default_factory=dict)
    """Answers that were worked out before."""
    compared: dict[tuple[int, int], list[bool]] = field(default_factory=dict)
    """Pairs that were compared before."""

    def ids(self, variable: str, base: int, source: int) -> frozenset[int]:
        """The tokens that the causal model allows on `base` with the variable's value from `source`."""
        value = self.alone[source][variable]
        key = (variable, base, value if isinstance(value, str | int | float | bool | tuple) else source)
        if key not in self.kept:
            answer = self.causal.run(self.inputs[base], set={variable: value})[self.causal.output]
            self.kept[key] = self.says.ids(answer, self.inputs[base])
        return self.kept[key]

    def right(self, base: int) -> frozenset[int]:
        """The tokens that the causal model allows on `base` alone."""
        return self.says.ids(self.alone[base][self.causal.output], self.inputs[base])

    def changes(self, base: int, source: int) -> list[bool]:
        """By variable: whether what was right on the base alone is so no longer."""
        if (base, source) not in self.compared:
            right = self.right(base)
            self.compared[base, source] = [not self.ids(name, base, source) & right for name in self.variables]
        return self.compared[base, source]

    def drawn(self, base: Sequence[int], seed: int, tokens: Sequence[int]) -> dict[str, Any]:
        """Fields of `Trials` that follow from the sources that are drawn for these bases."""
        source = self.sources(base, seed)
        allowed = [self.allowed(base, which) for which in (source, self.others(base, source, seed))]
        answers = tuple(sorted({*tokens}.union(*(ids for table in allowed for rows in table for ids in rows))))
        expected, shuffled = (torch.stack([_table(rows, answers) for rows in table]) for table in allowed)
        before = _table([self.right(row) for row in base], answers)
        found = {"source": torch.tensor(source), "tokens": answers, "before": before}
        return {**found, "expected": expected, "shuffled": shuffled}

    def allowed(self, base: Sequence[int], source: Sequence[int]) -> list[list[frozenset[int]]]:
        """By variable and pair: the tokens that the causal model allows after the interchange."""
        return [[self.ids(v, b, s) for b, s in zip(base, source, strict=True)] for v in self.variables]

    def others(self, base: Sequence[int], source: Sequence[int], seed: int) -> list[int]:
        """The sources dealt out anew among the bases of each template."""
        rng, others, groups = Random(seed + 1), list(source), self.setting.task.groups
        for group in sorted({groups[row] for row in base}):
            places = [place for place, row in enumerate(base) if groups[row] == group]
            dealt = rng.sample(places, len(places))
            for place, other in zip(places, dealt, strict=True):
                others[place] = source[other]
        return others

    def sources(self, base: Sequence[int], seed: int) -> list[int]:
        """A source for each base, so that each variable's answer changes in nearly the asked share of pairs.

        Of each base's sources, in random order, the first that brings the shares nearest, in all and within the base's
        template. Raises `InputError` for a variable that changes no answer.
        """
        rng, source, groups = Random(seed), list[int](), self.setting.task.groups
        counts: dict[int, list[int]] = {group: [0] * (len(self.variables) + 1) for group in (-1, *groups)}
        for row in base:
            others = [other for other in rng.sample(list(base), min(TRIED, len(base))) if other != row]
            near = [counts[-1], counts[groups[row]]]
            ranked = [(_off(near, self.changes(row, other), self.share), place) for place, other in enumerate(others)]
            source.append(others[min(ranked)[1]])
            for count in near:
                for number, change in enumerate([*self.changes(row, source[-1]), 1]):
                    count[number] += change
        for variable, changed in zip(self.variables, counts[-1], strict=False):
            if not changed:
                raise InputError(
                    f"The value of {variable!r} from another prompt changes the answer of the causal model on none of "
                    f"the {len(base)} prompts, so that no place could be told from any other. Give prompts that differ "
                    "in it."
                )
        return source


def _off(counts: Sequence[Sequence[int]], new: Sequence[bool], share: float) -> float:
    """How far shares are from `share` with one pair more; `counts` are those of changes by variable, and of pairs."""
    return sum(
        abs(count + change - share * (pairs + 1))
        for *changes, pairs in counts
        for count, change in zip(changes, new, strict=True)
    )


def _right_alone(setting: Setting, tokens: Sequence[int], answers: Sequence[frozenset[int]]) -> Tensor:
    """1.0 for prompts on which the likeliest of `tokens` is an answer of the causal model."""
    right = torch.zeros(len(answers))
    for run in passes(setting, range(len(answers))):
        final = run.activations.final
        assert final is not None
        with torch.no_grad():
            best = setting.model.unembed(run.inputs.at_read(final), list(tokens)).float().argmax(1).tolist()
        for row, token in zip(run.rows, best, strict=True):
            right[row] = float(tokens[token] in answers[row])
    return right


def _enough(kept: list[int], task: Task, model: Model) -> list[int]:
    if len(kept) < max(FEWEST, len(task) / 2):
        raise InputError(
            f"{model.name} answers {len(kept)} of {len(task)} prompts of {task.name} as the causal model does, and at "
            f"least half of them, and {FEWEST}, are needed: what the model does not compute has no place. "
            "Check the causal model, or take a model that does the task."
        )
    return kept


def _positions(causal: CausalModel, task: Task) -> tuple[tuple[str, ...], Int[Tensor, "prompts roles"]]:
    """The roles that every prompt has, and not behind the token that is read; first to last."""
    by_prompt = [causal.roles_of(pair) for pair in task.pairs]
    ends = [pair.answer_position for pair in task.pairs]
    names = [
        name
        for name in by_prompt[0]
        if all(name in roles and roles[name] <= end for roles, end in zip(by_prompt, ends, strict=True))
    ]
    if not names:
        raise TaskError(f"Prompts of task {task.name!r} have no role in common, so there is no position to compare.")
    names.sort(key=lambda name: sum(roles[name] for roles in by_prompt))
    columns = {name: tuple(roles[name] for roles in by_prompt) for name in names}
    apart = {column: name for name, column in reversed(columns.items())}  # of two names of one position, the first
    names = [name for name in names if apart[columns[name]] == name]
    return tuple(names), torch.tensor([columns[name] for name in names]).T


def _table(rows: Sequence[frozenset[int]], tokens: Sequence[int]) -> Bool[Tensor, "pairs tokens"]:
    return torch.tensor([[token in allowed for token in tokens] for allowed in rows])


def _shown(inputs: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in inputs.items())
