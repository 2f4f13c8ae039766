"""Which prompts lend which others the value of a variable, what the causal model then answers, and what the model says.

Every prompt that the model does is once a base, with another prompt as its source. Sources are drawn so that for every
variable the answer of the causal model changes in a stated share of the pairs: where it never changes, a place at which
nothing happens would look like the variable's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from random import Random

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.causal.causal_model import CausalModel
from circuitome.causal.draws import Answers, Draws, gives_number
from circuitome.causal.sites import Place, chosen, values_at
from circuitome.causal.suffixes import Passes, Suffixes, passed
from circuitome.engine.batches import tokens_within
from circuitome.engine.setting import Setting
from circuitome.errors import InputError, NumericsError, TaskError, unknown_name
from circuitome.models.model import Model
from circuitome.results import Estimate, mean
from circuitome.tasks.task import Task

CHANGED = 0.5
"""Share of pairs in which the answer of the causal model is to change."""
NEAR = 0.02
"""How far numbers may be apart to count as near one another."""
LEAST = 0.5
"""Share of the prompts that the model must do, unless another is asked for."""
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
    positions: Int[Tensor, "prompts roles most"]
    """Where they are in each prompt; a role of fewer tokens than the longest ends with -1."""
    right_alone: Float[Tensor, " prompts"]
    """1.0 for each prompt whose answer is the causal model's before anything is interchanged."""
    base: Int[Tensor, " pairs"]
    """The prompt that is run, of each pair."""
    source: Int[Tensor, " pairs"]
    """The prompt that the value comes from."""
    tokens: tuple[float, ...]
    """All answers of the causal model and of the task, wrong ones too: the model's answer is the likeliest of them. Of
    a model that gives one number in place of logits, all numbers that the causal model gives."""
    expected: Bool[Tensor, "variables pairs tokens"]
    """Which of them the causal model allows after the interchange of each variable."""
    shuffled: Bool[Tensor, "variables pairs tokens"]
    """The same with values from the sources of other pairs: a control."""
    before: Bool[Tensor, "pairs tokens"]
    """Which of them the model answers on the base alone."""
    draws: Draws
    """Where further sources come from."""
    recorded: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    """By kind of sites and block: what each prompt shows there, [prompts, roles, most, head, width]; filled when
    needed."""
    placed: dict[str, list[Tensor]] = field(default_factory=dict)
    """By place: what each prompt shows at its parts, [prompts, most, width]; filled when needed."""
    begun: dict[str, list[Suffixes]] = field(default_factory=dict)
    """Of the last place at which something was learned: the bases of each step from there on."""

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
        return replace(self, setting=self.setting.but(model=model), recorded={}, placed={}, begun={})

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

    def bases(self, chunk: Int[Tensor, " some"], model: Model | None = None) -> Passes:
        """The base prompts of some pairs, run; on a view of the model where one is given."""
        return passed(model or self.model, self.task, self.base[chunk].tolist())

    def at(self, chunk: Int[Tensor, " some"], role: str) -> Int[Tensor, "some most"]:
        """Where a role stands in the bases of some pairs."""
        return self.positions[self.base[chunk], self.column(role)]

    def values_of(self, place: Place) -> list[Float[Tensor, "prompts most width"]]:
        """What each prompt shows at the parts of a place; float32. The first call for a place runs the prompts."""
        if str(place) not in self.placed:
            view = place.view(self.model)
            for run in passes(self.setting.but(model=view), self.base.tolist()):
                self.note(place, view, run)
        return self.placed[str(place)]

    def note(self, place: Place, view: Model, run: Passes) -> None:
        """Keep what a pass shows at the parts of a place, for `values_of`."""
        values = self.placed.setdefault(str(place), [])
        here, within = list(run.rows), torch.arange(len(run.rows))[:, None]
        for number, part in enumerate(place.parts):
            at = self.positions[here, self.column(part.role)].clamp(min=0)
            shown = values_at(view, run.activations, part.site.kind, part.site.layer)
            shown = chosen(view, part.site, shown)[within, at].float()
            if number == len(values):
                values.append(shown.new_zeros(len(self.task), *shown.shape[1:]))
            values[number][here] = shown

    def needed(self, variable: str) -> Int[Tensor, " pairs"]:
        """Position in each base of the last token that the variable is computed from; 0 where no role says it."""
        inputs = self.causal.sources_of(variable)
        roles = [self.causal.roles_of(self.task.pairs[row]) for row in self.base.tolist()]
        last = [max((max(at_of(own[name])) for name in inputs if name in own), default=0) for own in roles]
        return torch.tensor(last)

    def early(self, role: str, variable: str) -> bool:
        """Whether a role stands in front of a token that the variable is computed from, so that it cannot be there."""
        if not self.model.causal:
            return False
        last = self.positions[self.base, self.column(role)].max(1).values
        return bool((last < self.needed(variable)).all())

    def check_place(self, place: Place, variable: str) -> None:
        """Raises `InputError` for a place in front of the inputs of a variable."""
        if early := [role for role in place.roles if self.early(role, variable)]:
            known = {name for pair in self.task.pairs for name in self.causal.roles_of(pair)}
            inputs = ", ".join(name for name in self.causal.sources_of(variable) if name in known)
            raise InputError(
                f"{variable!r} cannot be at {place}: {early[0]} stands in front of a token that it is computed from "
                f"({inputs}), and no position sees a later one. Take a later token."
            )

    def values(self, kind: str, layer: int) -> Float[Tensor, "prompts roles most head width"]:
        """What each prompt shows at the sites of a kind in a block, at its roles; of prompts that are in no pair, 0.

        The first call for a kind runs the prompts, once for all blocks.
        """
        if (kind, layer) not in self.recorded:
            self._record(kind)
        return self.recorded[kind, layer]

    def _record(self, kind: str) -> None:
        for run in passes(self.setting, self.base.tolist()):
            here = list(run.rows)
            at, within = self.positions[here].clamp(min=0), torch.arange(len(here))[:, None, None]
            for layer in range(len(self.model.blocks) + (kind == "resid")):
                picked = values_at(self.model, run.activations, kind, layer)[within, at]
                whole = self.recorded.setdefault((kind, layer), picked.new_zeros(len(self.task), *picked.shape[1:]))
                whole[here] = picked

    def differences(
        self, kind: str, layer: int, role: int, chunk: Int[Tensor, " some"]
    ) -> Float[Tensor, "some most head width"]:
        """Value on the source minus value on the base of some pairs, at a role; float32."""
        values = self.values(kind, layer)[:, role].float()
        return values[self.source[chunk]] - values[self.base[chunk]]

    def logits(self, final: Float[Tensor, "copies batch d_model"]) -> Float[Tensor, "copies batch tokens"]:
        """Logits of the answers for final residuals, float32. Raises `NumericsError` where they are no numbers."""
        logits = answer_logits(self.model, final.flatten(0, 1), self.tokens).unflatten(0, final.shape[:2])
        if not bool(logits.isfinite().all()):
            raise NumericsError(f"{self.model.name} gives logits that are no finite numbers under an interchange.")
        return logits


def at_of(position: int | Sequence[int]) -> tuple[int, ...]:
    """The tokens of a role, which may be one or several."""
    return (position,) if isinstance(position, int) else tuple(position)


def answer_text(model: Model, token: float) -> str:
    """An answer to be read: the text of a token, or a number."""
    return f"{token:g}" if gives_number(model) else model.decode([int(token)])


def answer_logits(
    model: Model, final: Float[Tensor, "batch d_model"], tokens: Sequence[float]
) -> Float[Tensor, "batch tokens"]:
    """Logits of some tokens, float32; of a number, those of a normal distribution around what the model gives."""
    if not gives_number(model):
        return model.unembed(final, [int(token) for token in tokens]).float()
    return -(((model.unembed(final).float() - torch.tensor(tokens, device=final.device)) / NEAR) ** 2)


def passes(setting: Setting, rows: Sequence[int]) -> Iterator[Passes]:
    """The clean prompts `rows`, run in batches that fit the budget."""
    order = sorted(rows, key=lambda row: len(setting.task.pairs[row].clean))
    longest = len(setting.task.pairs[order[-1]].clean)
    size = max(1, tokens_within(setting.model, setting.max_memory, gradients=False) // longest)
    for start in range(0, len(order), size):
        yield passed(setting.model, setting.task, order[start : start + size])


def trials(
    setting: Setting,
    causal: CausalModel,
    variables: Sequence[str] = (),
    *,
    least: float = LEAST,
    changed: float = CHANGED,
) -> Trials:
    """Pairs for the interchange of `variables` (all that are not the answer), one for every prompt that the model does.

    Left out is also a prompt to which no other can lend its values; see `Draws.possible`.
    Raises `UnknownNameError` for a variable that is none, `InputError` where the model does less than the share `least`
    of the prompts or none changes an answer, for an answer that is not one token, and for one that is always right.
    """
    if not 0 < least <= 1:
        raise InputError(f"least is a share of the prompts, above 0 and at most 1; got {least}.")
    model, task = setting.model, setting.task
    for name in variables:
        causal.check_name(name)
    variables = tuple(variables) or causal.variables or (causal.output,)
    inputs = [causal.inputs_of(model, pair) for pair in task.pairs]
    alone = [causal.run(given) for given in inputs]
    says = Answers(setting, causal, inputs)
    answers = [says.ids(values[causal.output], given) for values, given in zip(alone, inputs, strict=True)]
    if not any(answers):
        raise InputError(
            f"{causal.output!r} is None on all {len(task)} prompts of {task.name}: the causal model has no answer to "
            "compare the model's with. Let it give a text."
        )
    theirs = [] if gives_number(model) else [token for pair in task.pairs for token in (*pair.answers, *pair.wrongs)]
    tokens = tuple(sorted({*theirs}.union(*answers)))
    said = _said_alone(setting, tokens)
    right = torch.tensor([float(token in allowed) for token, allowed in zip(said, answers, strict=True)])
    kept = _enough([row for row, good in enumerate(right.tolist()) if good], task, model, least)
    roles, positions = _positions(causal, task, model)
    kinds = [
        (pair.template, *(int(count) for count in counts))
        for pair, counts in zip(task.pairs, (positions >= 0).sum(2).tolist(), strict=True)
    ]
    draws = Draws(setting, causal, variables, tuple(inputs), tuple(alone), says, changed, tuple(kinds), said)
    kept = _enough(draws.with_sources(kept), task, model)
    Random(setting.seed).shuffle(kept)
    pairs = Trials(
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
    for variable in variables:
        _check_no_answer_for_all(pairs, variable)
    return pairs


def _check_no_answer_for_all(pairs: Trials, variable: str) -> None:
    """Raises `InputError` where of several right answers one is right in all pairs."""
    expected = pairs.expected[pairs.index(variable)]
    if bool((expected.sum(1) > 1).any()) and bool((always := expected.all(0)).any()):
        said = answer_text(pairs.model, pairs.tokens[int(always.nonzero()[0])])
        raise InputError(
            f"{said!r} is a right answer in all {len(expected)} pairs, whatever the value of {variable!r} is, so that "
            f"no place could be told from a model that always says it. Let {pairs.causal.output!r} allow fewer answers."
        )


def _said_alone(setting: Setting, tokens: Sequence[float]) -> tuple[float, ...]:
    """By prompt, the likeliest of `tokens`."""
    said = dict[int, float]()
    for run in passes(setting, range(len(setting.task))):
        final = run.activations.final
        assert final is not None
        with torch.no_grad():
            best = answer_logits(setting.model, run.inputs.at_read(final), tokens).argmax(1).tolist()
        said |= {row: tokens[token] for row, token in zip(run.rows, best, strict=True)}
    return tuple(said[row] for row in range(len(setting.task)))


def _enough(kept: list[int], task: Task, model: Model, least: float = 0.0) -> list[int]:
    """Raises `InputError` for fewer prompts than the share `least` of all, and than `FEWEST`."""
    if least and len(kept) < max(FEWEST, least * len(task)):
        raise InputError(
            f"{model.name} answers {len(kept)} of {len(task)} prompts of {task.name} as the causal model does, and at "
            f"least {least:.0%} of them, and {FEWEST}, are needed: what the model does not compute has no place. "
            "Check the causal model, take a model that does the task, or look at those prompts alone: "
            "a smaller least (--least)."
        )
    if len(kept) < FEWEST:
        raise InputError(
            f"{len(kept)} of {len(task)} prompts of {task.name} have another that can lend them its values; {FEWEST} "
            "are needed. With the others the causal model has no answer, or roles have other numbers of tokens. Give "
            "more prompts."
        )
    return kept


def _positions(
    causal: CausalModel, task: Task, model: Model
) -> tuple[tuple[str, ...], Int[Tensor, "prompts roles most"]]:
    """The roles that every prompt has, and not behind the token that is read, which sees none of these; in order."""
    by_prompt = [{name: at_of(at) for name, at in causal.roles_of(pair).items()} for pair in task.pairs]
    ends = [pair.answer_position if model.causal else len(pair.clean) for pair in task.pairs]
    names = [
        name
        for name in by_prompt[0]
        if all(name in roles and max(roles[name]) <= end for roles, end in zip(by_prompt, ends, strict=True))
    ]
    if not names:
        raise TaskError(f"Prompts of task {task.name!r} have no role in common, so there is no position to compare.")
    names.sort(key=lambda name: sum(max(roles[name]) for roles in by_prompt))
    columns = {name: tuple(roles[name] for roles in by_prompt) for name in names}
    apart = {column: name for name, column in reversed(columns.items())}  # of two names of one position, the first
    names = [name for name in names if apart[columns[name]] == name]
    most = max(len(at) for name in names for at in columns[name])
    filled = [[(*at, *[-1] * (most - len(at))) for at in columns[name]] for name in names]
    return tuple(names), torch.tensor(filled).transpose(0, 1)
