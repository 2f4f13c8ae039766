"""What a model shows on prompts: activations at sites by name, and attention patterns of heads."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.batches import batches
from circuitome.engine.interventions.changes import Change
from circuitome.engine.interventions.positions import Positions
from circuitome.engine.interventions.prompts import as_task, texts, token_ids
from circuitome.engine.interventions.sites import Site, part
from circuitome.engine.interventions.sites import site as site_of
from circuitome.engine.interventions.watching import changing_site, z_written
from circuitome.errors import InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.model import Model
from circuitome.results import Shown


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Activations(Mapping[str, Tensor]):
    """Values at sites by name: `activations["a9.h6.z"]` is [prompt, position, width], NaN behind a prompt's end."""

    by_site: dict[str, Tensor]
    """By site [prompt, position, width]; patterns [prompt, query, key]."""
    prompts: tuple[str, ...]
    """The prompts as text."""
    tokens: tuple[tuple[str, ...], ...]
    """Each prompt's tokens as text: labels of the position axis."""

    def __getitem__(self, site: str) -> Tensor:
        if site not in self.by_site:
            raise unknown_name("recorded site", site, self.by_site)
        return self.by_site[site]

    def __iter__(self) -> Iterator[str]:
        return iter(self.by_site)

    def __len__(self) -> int:
        return len(self.by_site)

    def __contains__(self, site: object) -> bool:
        return site in self.by_site

    def __repr__(self) -> str:
        return f"Activations({_named(self, 'sites')}; {_counted(self.prompts, self.tokens)})"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class AttentionPatterns(Shown):
    """Attention probabilities of some heads; `patterns["a9.h6"]` is [prompt, query, key]."""

    pattern: Float[Tensor, "prompt head query key"]
    """Rows sum to 1 over keys; NaN behind a prompt's end."""
    heads: tuple[str, ...]
    """Names of the heads."""
    prompts: tuple[str, ...]
    """The prompts as text."""
    tokens: tuple[tuple[str, ...], ...]
    """Each prompt's tokens as text: labels of queries and keys."""

    def __getitem__(self, head: str) -> Float[Tensor, "prompt query key"]:
        if head not in self.heads:
            raise unknown_name("recorded head", head, self.heads)
        return self.pattern[:, self.heads.index(head)]

    def __repr__(self) -> str:
        return f"AttentionPatterns({_named(self.heads, 'heads')}; {_counted(self.prompts, self.tokens)})"


def _named(names: Collection[str], kind: str) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{len(names)} {kind}"


def _counted(prompts: Sequence[str], tokens: Sequence[Sequence[str]]) -> str:
    return f"{len(prompts)} prompts of up to {max(map(len, tokens))} tokens"


def activations(
    model: Model, prompts: Any, sites: str | Sequence[str], *, max_memory: int | None = None
) -> Activations:
    """What the model has at `sites` on `prompts` (a text, token ids, a list of either, or a task's clean prompts).

    Gives tensors [prompt, position, width] by site name, in the model's dtype, on the CPU, without gradients; positions
    count from each prompt's beginning, and there is NaN behind its end. Sites are those of `hook`. Costs one forward
    pass, in batches of like lengths that take at most `max_memory` bytes. Inside `ablate` and its like, values are
    those of the changed model.
    Raises `UnknownNameError` for a site that does not exist, `InputError` without prompts, `MemoryBudgetError`.

    >>> model = cm.load("known-ioi")
    >>> values = cm.activations(model, ["Ann and Bob", "Ann"], ["a1.h0.z", "m2.resid_pre"])
    >>> values["a1.h0.z"].shape, values.tokens[1]
    (torch.Size([2, 4, 28]), ('BOS', 'Ann'))
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    if not names:
        raise InputError("There is no site to record; name at least one, such as a5.h1.z or m7.out.")
    rows = token_ids(model, prompts)
    tensors = _recorded(model, rows, {name: site_of(model, name) for name in names}, max_memory)
    text, tokens = texts(model, rows)
    return Activations(by_site=tensors, prompts=text, tokens=tokens)


def attention(
    model: Model, prompts: Any, heads: str | Sequence[str | Node], *, max_memory: int | None = None
) -> AttentionPatterns:
    """Attention probabilities of `heads` on `prompts`: [prompt, head, query, key], with labels.

    Rows sum to 1 over keys; queries and keys count from each prompt's beginning, NaN behind its end. `a9` stands for
    all heads of a block. The model computes its attention in the open for that. Costs, prompts, and what holds inside
    `ablate`: as `activations`. Raises `UnknownNameError` for a head that does not exist, `InputError` for another part,
    `UnsupportedModelError` for a model that gives no attention probabilities.

    >>> model = cm.load("known-ioi")
    >>> patterns = cm.attention(model, "Ann and Bob met then Bob gave to", ["a2.h0"])
    >>> patterns.tokens[0][int(patterns["a2.h0"][0, -1].argmax())]
    'Ann'
    """
    names = [
        name for given in ([heads] if isinstance(heads, str | Node) else heads) for name in _heads(model, str(given))
    ]
    if not names:
        raise InputError("There is no head to look at; name at least one, such as a5.h1.")
    rows = token_ids(model, prompts)
    sites = {name: site_of(model, f"{name}.pattern") for name in names}
    tensors = _recorded(model, rows, sites, max_memory)
    text, tokens = texts(model, rows)
    pattern = torch.stack([tensors[name] for name in names], 1)
    return AttentionPatterns(pattern=pattern, heads=tuple(names), prompts=text, tokens=tokens)


def _heads(model: Model, name: str) -> list[str]:
    node = part(model, name)
    if node.kind == "attention":
        return [str(Node.head(node.layer, index)) for index in range(model.heads.q)]
    if node.kind != "head":
        raise InputError(f"{name} is no attention head; give one such as a0.h0.")
    return [name]


def _recorded(
    model: Model, rows: list[tuple[int, ...]], sites: dict[str, Site], max_memory: int | None
) -> dict[str, Tensor]:
    """By name, the values of every prompt, padded with NaN."""
    latest: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {name: [torch.empty(0)] * len(rows) for name in sites}
    positions = Positions("all")
    with torch.no_grad(), model.reserved(), ExitStack() as stack:
        stack.enter_context(positions.followed(model))
        for name, site in sites.items():
            show = z_written if site.what == "z" else changing_site
            stack.enter_context(show(model, site, positions, _keep(latest, name)))
        for batch in batches(model, as_task(rows), shared_prefix=False, corrupted=False, max_memory=max_memory):
            with model.running_rows(batch.rows, len(rows)):
                model.record(batch.clean, logits=False)
            for name, site in sites.items():
                for i, row in enumerate(batch.rows):
                    size = len(rows[row])
                    value = latest[name][i, :size]
                    kept[name][row] = (value[:, :size] if site.what == "pattern" else value).cpu().clone()
            latest.clear()
    return {name: _padded(values, square=sites[name].what == "pattern") for name, values in kept.items()}


def _keep(latest: dict[str, Tensor], name: str) -> Change:
    def keep(values: Tensor, where: Any) -> None:
        latest[name] = values[:, :, 0]

    return keep


def _padded(values: list[Tensor], *, square: bool) -> Tensor:
    longest = max(map(len, values))
    width = longest if square else values[0].shape[-1]
    whole = values[0].new_full((len(values), longest, width), torch.nan)
    for i, value in enumerate(values):
        whole[i, : len(value), : value.shape[-1]] = value
    return whole
