"""The same circuit tomorrow: the edges that a search comes back to when its prompts are drawn anew.

A draw takes as many prompts with replacement; where they come from templates, as many templates with all their prompts.
Scores that are means over prompts give every draw's circuit from the samples at hand, without a pass of the model;
other methods run again on each draw. Source: CIRCUS, arXiv:2603.00523, whose strict consensus is a share of 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.engine.setting import Setting, method, on_neurons
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit
from circuitome.graph.edge_scores import EdgeScores
from circuitome.progress import silent
from circuitome.results import Shown, drawn_rows, resample_means
from circuitome.validation.robustness.score_agreement import check_size, strongest

DRAWS = 100
"""Draws where the scores of every prompt are at hand."""
RERUNS = 5
"""Draws where the method runs on each."""
SHARES = (0.5, 0.7, 0.9, 1.0)
"""Shares of draws at which the number of edges is told."""


@runtime_checkable
class Searched(Protocol):
    """What a search gives that chooses a circuit of its own."""

    @property
    def scores(self) -> EdgeScores:
        """One number an edge."""
        ...

    @property
    def circuit(self) -> Circuit:
        """Its circuit."""
        ...


@dataclass(frozen=True, eq=False, repr=False)
class StableCircuit(Shown):
    """How many draws of prompts come back to each edge, and the circuit of those that most come back to."""

    scores: EdgeScores
    """The scores on all prompts."""
    whole: Circuit
    """The circuit on all prompts."""
    counts: Int[Tensor, "writers readers"]
    """Draws whose circuit has the edge."""
    draws: int
    """Draws in all."""
    reruns: bool
    """Whether the method ran on each draw."""
    share: float
    """The share of draws that was asked for."""

    def __repr__(self) -> str:
        return f"StableCircuit({len(self.circuit)} edges in at least {self.share:.0%} of {self.draws} draws of prompts)"

    @property
    def kept(self) -> Float[Tensor, "writers readers"]:
        """Share of the draws whose circuit has the edge."""
        return self.counts / self.draws

    @property
    def circuit(self) -> Circuit:
        """The edges in at least `share` of the draws."""
        return self.at(self.share)

    def at(self, share: float) -> Circuit:
        """The edges in at least that share of the draws; there may be none."""
        return Circuit(self.scores.graph, self.counts >= max(1, math.ceil(share * self.draws - 1e-9)))

    def by_share(self) -> dict[float, Circuit]:
        """The circuits at `SHARES` and at the share that was asked for."""
        return {share: self.at(share) for share in sorted({*SHARES, self.share})}

    def to_dict(self) -> dict[str, Any]:
        """What was drawn, and the number of edges by share, as plain JSON values."""
        edges = [{"share": share, "edges": len(circuit)} for share, circuit in self.by_share().items()]
        about = {"share": self.share, "draws": self.draws, "reruns": self.reruns}
        return {**about, "edges_of_all_prompts": len(self.whole), "edges": edges}


@method
@on_neurons
def stable(
    setting: Setting,
    *,
    method: Callable[[Setting], EdgeScores | Searched],
    size: int | None = None,
    draws: int | None = None,
    share: float = 0.9,
    whole: EdgeScores | Searched | None = None,
) -> StableCircuit:
    """The edges that are in the circuit of at least `share` of the draws of prompts (bootstrap, by template).

    `method` is any search, such as `cm.eap_ig`, or `cm.smallest` with its sizing and held-out prompts. A draw's circuit
    is the `size` strongest edges by |score|, or, without a size, the one that the method chooses. Where a size is given
    and the method keeps the scores of every prompt, `draws` (default 100) cost nothing beyond the one search; else it
    runs again on each (default 5), with another seed. `whole` is its result on all prompts, where it is at hand. The
    setting's checkpoint keeps the draws that are done. Source: CIRCUS, arXiv:2603.00523; draws by template are ours.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> cm.stable(model, task, method=cm.eap, size=12, share=0.9)
    StableCircuit(12 edges in at least 90% of 100 draws of prompts)

    Raises `InputError` for a share outside of (0, 1], fewer than 2 draws, no size for a method without a circuit of its
    own, and where no edge comes back so often, with the share that keeps some; and what `method` raises.
    """
    if not 0 < share <= 1:
        raise InputError(f"share is the share of draws that an edge has to come back in, above 0 up to 1; got {share}.")
    if draws is not None and draws < 2:
        raise InputError(f"Whether edges come back takes at least 2 draws of prompts, got {draws}.")
    result = method(setting.but(checkpoint=None)) if whole is None else whole
    scores, circuit = chosen(result, size)
    check_size(circuit)
    by_samples = scores.samples is not None and size is not None
    count = draws or (DRAWS if by_samples else RERUNS)
    if by_samples:
        circuits = _from_samples(setting, scores, len(circuit), count)
    else:
        circuits = _from_reruns(setting, method, size, count, scores.method)
    counts = scores.graph.matrix(circuits.float().sum(0)).int()
    stable = StableCircuit(scores, circuit, counts, count, not by_samples, share)
    if not len(stable.circuit):
        most = int(counts.max()) / count
        raise InputError(
            f"No edge comes back in {share:g} of {count} draws of prompts. The most that any comes back in is "
            f"{most:g}: that share keeps {len(stable.at(most))} edges. Or search on more prompts (--n)."
        )
    return stable


def chosen(result: EdgeScores | Searched, size: int | None) -> tuple[EdgeScores, Circuit]:
    """Scores and circuit of a search: the strongest edges where a size is given. Raises `InputError` without either."""
    scores = result if isinstance(result, EdgeScores) else result.scores
    if size is not None:
        return scores, scores.top(size)
    if isinstance(result, EdgeScores):
        raise InputError(f"{scores.method or 'This method'} scores edges and chooses none: say how many with size.")
    return scores, result.circuit


def _from_samples(setting: Setting, scores: EdgeScores, size: int, draws: int) -> Bool[Tensor, "draws edges"]:
    """The strongest edges of every draw, from the scores of every prompt."""
    assert scores.samples is not None
    means = resample_means(scores.samples, seed=setting.seed, resamples=draws, groups=setting.task.groups)
    return strongest(means, size)


def _from_reruns(
    setting: Setting,
    method: Callable[[Setting], EdgeScores | Searched],
    size: int | None,
    draws: int,
    name: str,
) -> Bool[Tensor, "draws edges"]:
    """The circuit of the method on every draw, those of a stopped call as they were."""
    task, mask = setting.task, setting.model.graph.mask
    kept = setting.kept("stable", name, size, draws, setting.seed)
    before = kept.read()
    circuits = [] if before is None else list(before[0]["circuits"])
    for done, rows in enumerate(drawn_rows(len(task), draws=draws, seed=setting.seed, groups=task.groups)):
        setting.progress("draws of prompts", done, draws)
        if done < len(circuits):
            continue
        drawn = replace(task, pairs=tuple(task.pairs[row] for row in rows.tolist()))
        here = setting.but(prompts=drawn, seed=setting.seed + 1 + done, checkpoint=None, progress=silent)
        circuits.append(chosen(method(here), size)[1].mask[mask])
        kept.write({"circuits": torch.stack(circuits)}, {})
    setting.progress("draws of prompts", draws, draws)
    return torch.stack(circuits)
