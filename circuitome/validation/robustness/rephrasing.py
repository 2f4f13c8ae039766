"""Does the circuit change with the wording? Overlap between templates, beside that between prompts of all templates.

Scores are means over prompts, so a circuit of any part of the prompts comes from the samples at hand. The templates are
cut into two disjoint halves, several times, and the circuits of the two halves compared. What that overlap would be if
wording did not matter comes from the same cuts with the templates of all prompts exchanged at random: halves of equal
sizes that share no prompt either (two resamples with replacement would, and so flatter), of prompts of all templates.
Where the overlap between templates lies below 95 % of these, rephrasing changes the circuit more than other prompts do.
Sources: arXiv:2510.00845 and arXiv:2606.16920 (circuits by attribution vary with rephrasing); permutation test, Fisher
1935.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.edge_scores import EdgeScores
from circuitome.results import Record
from circuitome.tasks.task import Task
from circuitome.validation.robustness.score_agreement import check_size, strongest
from circuitome.validation.robustness.stability import FEWEST_PROMPTS, Spread, samples_of

CUTS = 6
"""Cuts of the templates into halves, at most."""
DRAWS = 100
"""Times that the templates of all prompts are exchanged."""


@dataclass(frozen=True)
class Rephrased(Record):
    """One way to cut the prompts by their wording."""

    name: str
    """What is cut: templates, families of templates, or paraphrases."""
    groups: int
    """How many of them there are."""
    n: int
    """Prompts."""
    between: float
    """Jaccard of edges between the two sides of a cut, mean over cuts."""
    exchanged: Spread
    """The same where each prompt has the template of another."""

    @property
    def specific(self) -> bool:
        """Whether circuits differ more between wordings than between prompts, beyond the interval of these."""
        return self.between < self.exchanged.range[0]

    def __str__(self) -> str:
        low, high = self.exchanged.range
        return (
            f"circuits of different {self.name} share {self.between:.2f} of their edges (Jaccard), those of as many "
            f"prompts drawn over all of them {self.exchanged.mean:.2f} [{low:.2f}, {high:.2f}]"
        )


@dataclass(frozen=True)
class Rephrasing:
    """How circuits of one size change with the wording."""

    size: int
    """Edges of every circuit."""
    ways: tuple[Rephrased, ...]
    """Every way in which the prompts can be cut."""

    @property
    def specific(self) -> tuple[Rephrased, ...]:
        """The ways in which wording changes the circuit more than other prompts do."""
        return tuple(way for way in self.ways if way.specific)

    def to_dict(self) -> dict[str, Any]:
        """All ways, and the sentence about those that matter, as plain JSON values."""
        rows = [{**way.to_dict(), "specific": way.specific} for way in self.ways]
        said = "; ".join(map(str, self.specific))
        return {"size": self.size, "ways": rows, "template_specific": f"Template-specific: {said}." if said else ""}


def rephrasing(
    task: Task, scores: EdgeScores, size: int, *, paraphrases: EdgeScores | None = None, seed: int = 0
) -> Rephrasing:
    """Whether the circuit of the `size` strongest edges changes more with the wording than with the prompts.

    `scores` are of the prompts of `task`, `paraphrases` of the same behaviour in other sentences, both with samples.
    Ways to cut: templates; families of templates, whose names are the same without a number at the end; the task's
    prompts against the paraphrases. Costs no pass of the model. Raises `InputError` where nothing can be cut, for
    scores without samples, fewer than 4 prompts, and a size that cannot be.
    """
    samples = samples_of(scores)
    check_size(scores.top(size))
    cuts = {name: names for name, names in wordings(task).items() if len(samples) >= FEWEST_PROMPTS}
    ways = [_compared(name, names, samples, size, seed) for name, names in cuts.items()]
    if paraphrases is not None:
        other = samples_of(paraphrases)
        names = ["own"] * len(samples) + ["paraphrase"] * len(other)
        ways.append(_compared("wordings (own and paraphrased)", names, torch.cat([samples, other]), size, seed))
    if not ways:
        raise InputError(
            f"Whether rephrasing changes the circuit cannot be told: {task.name} has one template. Prompts of at least "
            "two, named in the column template of a file, would tell."
        )
    return Rephrasing(size, tuple(ways))


def wordings(task: Task) -> Mapping[str, list[str]]:
    """By way to cut them, the group of each prompt; empty where all are worded alike or nobody said how.

    Rows of one answer of several tokens share a template that says nothing of their wording.
    """
    templates = [pair.template for pair in task.pairs]
    if not all(templates) or task.measure.name == "answer_log_prob":
        return {}
    families = [re.sub(r"-\d+$", "", name) for name in templates]
    ways = {"templates": templates} if 1 < len({*templates}) < len(templates) else {}
    return ways | ({"families of templates": families} if 1 < len({*families}) < len({*templates}) else {})


def _compared(
    name: str, groups: Sequence[str], samples: Float[Tensor, "prompts edges"], size: int, seed: int
) -> Rephrased:
    """The overlap between the sides of cuts, and what it is where groups are exchanged."""
    generator = torch.Generator().manual_seed(seed)
    sides = cuts_of(groups, generator)
    orders = (torch.randperm(len(samples), generator=generator) for _ in range(DRAWS))
    exchanged = torch.stack([_overlap(sides[:, order], samples, size) for order in orders])
    between = float(_overlap(sides, samples, size))
    return Rephrased(name, len({*groups}), len(samples), between, Spread(exchanged))


def cuts_of(groups: Sequence[str], generator: torch.Generator) -> Bool[Tensor, "cuts prompts"]:
    """Up to `CUTS` different cuts of the groups into two halves: which prompts lie on the one side."""
    names = sorted({*groups})
    place = torch.tensor([names.index(name) for name in groups])
    found: dict[tuple[bool, ...], Tensor] = {}
    for _ in range(20 * CUTS):
        side = torch.zeros(len(names), dtype=torch.bool)
        side[torch.randperm(len(names), generator=generator)[: len(names) // 2]] = True
        if len(names) % 2 == 0 and bool(side[0]):  # the same cut as its other side
            side = ~side
        found.setdefault(tuple(side.tolist()), side[place])
        if len(found) == CUTS:
            break
    return torch.stack(list(found.values()))


def _overlap(
    sides: Bool[Tensor, "cuts prompts"], samples: Float[Tensor, "prompts edges"], size: int
) -> Float[Tensor, ""]:
    """Jaccard of the circuits of the two sides, mean over cuts."""
    first, second = (strongest(_means(side, samples), size) for side in (sides, ~sides))
    both = (first & second).sum(1).float()
    return (both / (2 * size - both)).mean()


def _means(side: Bool[Tensor, "cuts prompts"], samples: Float[Tensor, "prompts edges"]) -> Float[Tensor, "cuts edges"]:
    """Mean scores of the prompts of one side."""
    weights = side.float()
    return weights @ samples / weights.sum(1, keepdim=True)
