"""Ablate, scale and patch parts of a model in every pass that runs inside a `with` block."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from circuitome.engine.interventions.changes import Change, changing_parts
from circuitome.engine.interventions.positions import At, Positions, inside
from circuitome.engine.interventions.prompts import token_ids
from circuitome.engine.interventions.sites import part
from circuitome.engine.interventions.values import OfPrompts, check_value, put_each, replacements, times, written
from circuitome.errors import InputError, NumericsError
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.tasks.task import Task


@contextmanager
def ablate(
    model: Model,
    parts: str | Sequence[str | Node],
    *,
    at: At = "all",
    value: str | Tensor = "zero",
    task: Task | None = None,
    prompts: Any = None,
) -> Iterator[None]:
    """Inside, what `parts` write is replaced in every forward pass of `model.hf`, `generate` included.

    Parts are `embed`, heads `a9.h6`, all heads of a block `a9`, MLPs `m3`, neurons `m3.n12`. A head's z is replaced in
    front of the output projection; an MLP's output where it is added to the stream, behind a post-norm if there is one;
    a neuron's value in front of the MLP's last projection, behind the activation and the gate. Under a post-norm behind
    the attention (Gemma 2/3, OLMo 2) a head's share of the stream is replaced, z over the norm's divisor, and the
    divisor stays as it is: the definition of every method here (`BlockStep`). Under grouped-query attention `a9.h6` is
    one query head. Dropout that stands behind a part still acts, in training mode, on what is put in.

    `at`: "all"; "prompt", all but generated tokens; "generated", just these; "end", the last token of each prompt; a
    role of `task`; a number or a list of numbers, negative ones counted from each prompt's end, padding not counted; or
    one list a prompt. Positions are those of the prompts in a pass that starts without a cache; in passes that go on
    from its cache, as in `generate`, only "all" and "generated" act, on every generated token.

    `value`: "zero"; "mean", over the tokens of `prompts` or of the task's corrupted prompts; "corrupted", what the part
    writes at the same position of the corrupted prompt, for passes over all prompts of `task` in order (generated
    tokens keep their own values); or a tensor that broadcasts to what the part writes, [prompts, positions, width]:
    d_head for a head, 1 for a neuron, d_model otherwise. Means and corrupted values are measured on entering, with the
    interventions around this one in force; that is a pass over those prompts. Nothing else costs a pass.

    Interventions nest; at one place the outer one acts first. Other threads that use `model` wait.
    Raises `UnknownNameError` for a part or role that does not exist, `InputError` for a role or "corrupted" without
    task, "mean" without prompts, a tensor of another shape and, in the pass, a position outside of a prompt,
    `NumericsError` for a tensor with NaN.

    >>> model = cm.load("known-ioi")
    >>> prompt = {"input_ids": torch.tensor([model.encode("Ann and Bob met then Bob gave to")])}
    >>> model.decode([int(model.hf(**prompt).logits[0, -1].argmax())])
    'Ann'
    >>> with cm.ablate(model, "a1.h0", at="end"):
    ...     model.decode([int(model.hf(**prompt).logits[0, -1].argmax())])
    'Bob'
    """
    groups = part_groups(model, parts)
    positions = Positions.of(at, task)
    with model.locked():
        rows = None if prompts is None else token_ids(model, prompts)
        changes = replacements(model, groups, value, task, rows)
        if isinstance(value, str) and value == "corrupted":
            positions.task = task
        with _in_force(model, groups, changes, positions):
            yield


@contextmanager
def replace_each(model: Model, values: Mapping[str, Tensor], *, at: At = "all") -> Iterator[None]:
    """Inside, each part writes a constant of its own, in every forward pass of `model.hf`, `generate` included.

    As `ablate` with a tensor for one part after another, but with one hook for all parts of a block: a constant is of
    the width that the part writes, or one number. Raises as `ablate`.
    """
    groups, positions = part_groups(model, list(values)), Positions.of(at)
    width = {"head": model.heads.width, "neuron": 1}
    changes = []
    for group in groups:
        own = width.get(group[0].kind, model.d_model)
        for node in group:
            check_value(values[str(node)], node, own)
        changes.append(put_each(torch.stack([values[str(node)].expand(own) for node in group])))
    with model.locked(), _in_force(model, groups, changes, positions):
        yield


@contextmanager
def scale(
    model: Model, parts: str | Sequence[str | Node], factor: float, *, at: At = "all", task: Task | None = None
) -> Iterator[None]:
    """Inside, what `parts` write is multiplied by `factor` in every forward pass of `model.hf`, `generate` included.

    Parts, positions, post-norms, nesting and errors as in `ablate`; factor 0 is its "zero". Raises `NumericsError` for
    a factor that is not finite.

    >>> model = cm.load("known-ioi")
    >>> prompt = {"input_ids": torch.tensor([model.encode("Ann and Bob met then Bob gave to")])}
    >>> with cm.scale(model, ["a2.h0", "a2.h1"], -1.0):
    ...     model.decode([int(model.hf(**prompt).logits[0, -1].argmax())])
    'BOS'
    """
    groups = part_groups(model, parts)
    positions = Positions.of(at, task)
    if not torch.isfinite(torch.tensor(float(factor))):
        raise NumericsError(f"Parts cannot be scaled by {factor}; give a finite number.")
    with model.locked(), _in_force(model, groups, [times(factor)] * len(groups), positions):
        yield


@contextmanager
def patch_in(
    model: Model,
    parts: str | Sequence[str | Node],
    source: Any,
    *,
    at: At = "all",
    source_at: int | str | Sequence[Any] | None = None,
    task: Task | None = None,
) -> Iterator[None]:
    """Inside, `parts` write what they write on the prompt `source`, in every forward pass of `model.hf`.

    `source` is a text, token ids, or a list of either, one for each prompt that runs; a single one serves all prompts.
    Values are measured on entering, in one pass over the source, with the interventions around this one in force.
    They are put at the positions `at`, from the same positions of the source or, with `source_at`, from those: the k-th
    of `at` gets the k-th of `source_at` ("end", a number, a list, or one list a source). Generated tokens keep their
    own values. Parts, positions, post-norms, nesting and errors as in `ablate`; `InputError`, too, where the source
    has other positions than are asked for.

    >>> model = cm.load("known-ioi")
    >>> prompt = {"input_ids": torch.tensor([model.encode("Ann and Bob met then Bob gave to")])}
    >>> with cm.patch_in(model, "a1.h0", "Ann and Bob met then Ann gave to", at="end"):
    ...     model.decode([int(model.hf(**prompt).logits[0, -1].argmax())])
    'Bob'
    """
    groups = part_groups(model, parts)
    positions = Positions.of(at, task)
    with model.locked():
        rows = token_ids(model, source)
        picked = None if source_at is None else _source_positions(source_at, rows)
        values = written(model, rows, groups, None)
        changes: list[Change] = [OfPrompts(own, "The source's values", picked, exact=True) for own in values]
        with _in_force(model, groups, changes, positions):
            yield


def _source_positions(source_at: Any, rows: list[tuple[int, ...]]) -> list[list[int]]:
    """By source prompt, positions counted from its beginning."""
    at = Positions.of(source_at).at
    if at == "generated":
        raise InputError("source_at says where in a prompt values come from, and a source has no generated tokens.")
    if at in ("all", "prompt"):
        return [list(range(len(row))) for row in rows]
    if isinstance(at, str):
        return [[len(row) - 1] for row in rows]
    given: Any = [at] if isinstance(at, int) else at
    by_row = [given] * len(rows) if isinstance(given[0], int) else given
    if len(by_row) != len(rows):
        raise InputError(f"source_at has positions for {len(by_row)} prompts, and there are {len(rows)} sources.")
    return [
        [inside(position, len(row), number, "source prompt") for position in own]
        for number, (own, row) in enumerate(zip(by_row, rows, strict=True))
    ]


def part_groups(model: Model, parts: str | Node | Sequence[str | Node]) -> list[list[Node]]:
    """The parts, each once: heads of a block together, since they are read in one place."""
    names = [parts] if isinstance(parts, str | Node) else list(parts)
    if not names:
        raise InputError("There is no part to intervene on; name at least one, such as a5.h1 or m7.")
    nodes: set[Node] = set()
    for name in names:
        node = part(model, str(name))
        nodes.update([Node.head(node.layer, i) for i in range(model.heads.q)] if node.kind == "attention" else [node])
    place = sorted(nodes, key=lambda node: (node.kind, node.layer, node.index))
    return [list(group) for _, group in groupby(place, key=lambda node: (node.kind, node.layer))]


def _in_force(
    model: Model, groups: list[list[Node]], changes: Sequence[Change], positions: Positions
) -> AbstractContextManager[Any]:
    """The installed changes."""
    with ExitStack() as stack:
        stack.enter_context(positions.followed(model))
        for group, change in zip(groups, changes, strict=True):
            stack.enter_context(changing_parts(model, group, positions, change))
        return stack.pop_all()
