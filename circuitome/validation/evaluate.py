"""Many circuits and knock-outs on the same prompts: what does not depend on them runs once."""

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.graph import Circuit
from circuitome.interventions import (
    Ablation,
    AblationValues,
    Baseline,
    KnockOut,
    baseline,
    batches,
    check_graph,
    circuit_logits,
    dense_copies,
    tokens_within,
)
from circuitome.models import Model
from circuitome.tasks import Task

Progress = Callable[[int, int], None]
"""Called with the runs done and the runs in all; a run is one circuit or knock-out on one prompt."""


class Evaluator:
    """The metric of circuits and knock-outs of one model on one task."""

    def __init__(
        self,
        model: Model,
        task: Task,
        ablation: Ablation = "corrupted",
        max_memory: int | None = None,
        *,
        keep: bool = True,
    ) -> None:
        """Baselines are made when first needed, and with `keep` kept where all of them fit into the memory budget."""
        self.model, self.task, self.ablation, self.max_memory = model, task, ablation, max_memory
        self.replacement = AblationValues.of(model, task, ablation)
        tokens = sum(len(pair.clean) for pair in task.pairs)
        self.keeps = keep and 2 * tokens <= tokens_within(model, max_memory, gradients=False)
        self.kept: list[Baseline] = []
        self._clean = torch.full((len(task),), torch.nan)
        self._seen = False

    def bases(self) -> Iterator[Baseline]:
        """The baseline of every batch."""
        if self.kept:
            yield from self.kept
            return
        corrupted, made = self.replacement.from_prompts, []
        for batch in batches(
            self.model, self.task, shared_prefix=corrupted, corrupted=corrupted, max_memory=self.max_memory
        ):
            base = baseline(self.model, self.task, batch, self.replacement)
            if self.keeps:
                made.append(base)
            if not self._seen:
                with torch.no_grad():
                    logits = self.model.logits(base.batch.clean)
                self._clean[list(batch.rows)] = self.task.score(logits, batch.rows).cpu()
            yield base
        self.kept, self._seen = made, True

    @property
    def clean(self) -> Float[Tensor, " prompts"]:
        """The metric of the whole model."""
        if not self._seen:
            for _ in self.bases():
                pass
        return self._clean

    def circuits(
        self, circuits: Sequence[Circuit], progress: Progress | None = None
    ) -> Float[Tensor, "circuits prompts"]:
        """The metric of each circuit, everything outside it ablated.

        Raises `InputError` for a circuit of another model.
        """
        for circuit in circuits:
            check_graph(self.model, circuit)
        found = torch.empty(len(circuits), len(self.task))
        done = 0
        for base in self.bases():
            rows = list(base.batch.rows)
            for i, circuit in enumerate(circuits):
                found[i, rows] = self.task.score(circuit_logits(self.model, base, circuit), rows).cpu()
                done += len(rows)
                if progress:
                    progress(done, len(circuits) * len(self.task))
        return found

    def knocked_out(
        self, sets: Bool[Tensor, "sets writers"], progress: Progress | None = None
    ) -> Float[Tensor, "sets prompts"]:
        """The metric of the whole model with each set of writers ablated, everything else reacting."""
        found = torch.empty(len(sets), len(self.task))
        done = 0
        with torch.no_grad():
            for base in self.bases():
                rows = list(base.batch.rows)
                run = KnockOut(self.model, base)
                copies = dense_copies(self.model, base.batch.clean, self.max_memory)
                for part in torch.arange(len(sets)).split(copies):
                    final = run.final(sets[part])
                    logits = self.model.unembed(final.flatten(0, 1).to(self.model.dtype))
                    scores = self.task.score(logits, rows * len(part)).cpu()
                    found[part[:, None], torch.tensor(rows)] = scores.view(len(part), -1)
                    done += len(part) * len(rows)
                    if progress:
                        progress(done, len(sets) * len(self.task))
        return found
