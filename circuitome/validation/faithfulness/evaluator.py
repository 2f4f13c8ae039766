"""Many circuits, parts of circuits and knock-outs on the same prompts: what does not depend on them runs once.

What was measured is remembered by what was left in the model, so that no question is paid for twice; with a file to
remember it in, a stopped run asks again and has the answers at once.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.ablation import Ablation, AblationValues
from circuitome.engine.batches import batches, tokens_within
from circuitome.engine.checkpoint import Checkpoint
from circuitome.engine.circuit_run import Baseline, baseline, check_graph, circuit_logits
from circuitome.engine.knock_out import KnockOut
from circuitome.engine.partial_forward import dense_copies
from circuitome.engine.readout import Readout
from circuitome.engine.subcircuits import Subcircuits
from circuitome.graph.circuits import Circuit
from circuitome.models.model import Model
from circuitome.tasks.task import Task

Progress = Callable[[int, int], None]
"""Called with the runs done and the runs in all; a run is one circuit or knock-out on one prompt."""

SAVE_EVERY = 10.0
"""Seconds between two writings of what is remembered."""
AT_ONCE = 64
"""Questions after which answers are noted; where baselines are not kept, they are made again so often."""


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
        memory: Path | None = None,
    ) -> None:
        """Baselines are made when first needed, and with `keep` kept where all of them fit into the memory budget.

        `memory` is a file for what was measured. Raises `RunError` where it belongs to another task or model.
        """
        self.model, self.task, self.ablation, self.max_memory = model, task, ablation, max_memory
        self.replacement = AblationValues.of(model, task, ablation)
        tokens = sum(len(pair.clean) for pair in task.pairs)
        self.keeps = keep and 2 * tokens <= tokens_within(model, max_memory, gradients=False)
        self.kept: list[Baseline] = []
        self.known: dict[bytes, Float[Tensor, " prompts"]] = {}
        self.checkpoint = Checkpoint(memory, "validation", task.data_hash(), ablation, repr(model.graph), model.name)
        self.saved = time.monotonic()
        if before := self.checkpoint.read():
            keys, values = before[0]["keys"], before[0]["values"]
            self.known = {bytes(key.tolist()): value for key, value in zip(keys, values, strict=True)}

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
            yield base
        self.kept = made

    @property
    def clean(self) -> Float[Tensor, " prompts"]:
        """The metric of the whole model."""
        key = _key("clean")
        if key not in self.known:
            found = torch.empty(len(self.task))
            with torch.no_grad():
                for base in self.bases():
                    rows = list(base.batch.rows)
                    found[rows] = self.task.score(self.model.logits(base.batch.clean), rows).cpu()
            self.known[key] = found
        return self.known[key]

    def circuits(
        self, circuits: Sequence[Circuit], progress: Progress | None = None
    ) -> Float[Tensor, "circuits prompts"]:
        """The metric of each circuit, everything outside it ablated.

        Raises `InputError` for a circuit of another model.
        """
        for circuit in circuits:
            check_graph(self.model, circuit)
        keys = [_key("circuit", circuit.mask) for circuit in circuits]

        def measure(base: Baseline, new: list[int]) -> Iterator[tuple[list[int], Tensor]]:
            rows = list(base.batch.rows)
            for i in new:
                yield [i], self.task.score(circuit_logits(self.model, base, circuits[i]), rows)[None]

        return self._answers(keys, measure, progress)

    def parts(
        self, circuit: Circuit, gone: Bool[Tensor, "parts writers readers"], progress: Progress | None = None
    ) -> Float[Tensor, "parts prompts"]:
        """The metric of `circuit` without the edges in `gone`, part by part: as `circuits`, for far less.

        Neighbours in `gone` that leave out edges of the same layers cost least. Raises as `circuits`.
        """
        check_graph(self.model, circuit)
        keys = [_key("circuit", circuit.mask & ~one) for one in gone]
        made: dict[int, Subcircuits] = {}

        def measure(base: Baseline, new: list[int]) -> Iterator[tuple[list[int], Tensor]]:
            if id(base) not in made:
                made.clear()  # the last batch's is not needed any more
                made[id(base)] = Subcircuits(self.model, base, circuit)
            run, readout = made[id(base)], Readout(self.model, self.task, base.batch.rows, "metric")
            step = run.at_once(self.max_memory)
            for some in (new[i : i + step] for i in range(0, len(new), step)):
                yield some, -readout(run.final(gone[some]))

        return self._answers(keys, measure, progress)

    def ablate(
        self, sets: Bool[Tensor, "sets writers"], progress: Progress | None = None
    ) -> Float[Tensor, "sets prompts"]:
        """The metric of the whole model with each set of writers ablated, everything else reacting."""
        keys = [_key("knock-out", one) for one in sets]

        def measure(base: Baseline, new: list[int]) -> Iterator[tuple[list[int], Tensor]]:
            run, readout = KnockOut(self.model, base), Readout(self.model, self.task, base.batch.rows, "metric")
            step = dense_copies(self.model, base.batch.clean, self.max_memory)
            for some in (new[i : i + step] for i in range(0, len(new), step)):
                yield some, -readout(run.final(sets[some]))

        return self._answers(keys, measure, progress)

    def logits(self, circuit: Circuit) -> Float[Tensor, "prompts vocab"]:
        """All logits of one circuit; not remembered."""
        check_graph(self.model, circuit)
        rows: list[int] = []
        parts = []
        for base in self.bases():
            parts.append(circuit_logits(self.model, base, circuit).cpu())
            rows += base.batch.rows
        return torch.cat(parts)[torch.tensor(rows).argsort()]

    def clean_logits(self) -> Float[Tensor, "prompts vocab"]:
        """All logits of the whole model; not remembered."""
        rows: list[int] = []
        parts = []
        with torch.no_grad():
            for base in self.bases():
                parts.append(self.model.logits(base.batch.clean).cpu())
                rows += base.batch.rows
        return torch.cat(parts)[torch.tensor(rows).argsort()]

    def _answers(
        self,
        keys: Sequence[bytes],
        measure: Callable[[Baseline, list[int]], Iterator[tuple[list[int], Tensor]]],
        progress: Progress | None,
    ) -> Float[Tensor, "questions prompts"]:
        """What is asked by `keys`, measured batch by batch where it is not known yet."""
        new = [i for i, key in enumerate(keys) if key not in self.known and key not in keys[:i]]
        found = torch.empty(len(keys), len(self.task))
        done, total = (len(keys) - len(new)) * len(self.task), len(keys) * len(self.task)
        with torch.no_grad():
            for group in (new[i : i + AT_ONCE] for i in range(0, len(new), AT_ONCE)):
                for base in self.bases():
                    for some, values in measure(base, group):
                        found[torch.tensor(some)[:, None], torch.tensor(base.batch.rows)] = values.cpu()
                        done += len(some) * len(base.batch.rows)
                        if progress:
                            progress(done, total)
                self.known |= {keys[i]: found[i].clone() for i in group}
                self.save(SAVE_EVERY)
        return torch.stack([self.known[key] for key in keys]) if keys else found

    def save(self, after: float = 0.0) -> None:
        """Write what is known to the file, where there is one, unless that was done less than `after` seconds ago."""
        if not self.known or time.monotonic() - self.saved < after:
            return
        keys = torch.tensor([list(key) for key in self.known], dtype=torch.uint8)
        self.checkpoint.write({"keys": keys, "values": torch.stack(list(self.known.values()))}, {})
        self.saved = time.monotonic()


def _key(kind: str, what: Tensor | None = None) -> bytes:
    """A short name for one question."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    if what is not None:
        digest.update(what.cpu().numpy().tobytes())
    return digest.digest()
