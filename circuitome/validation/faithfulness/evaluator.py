"""Many circuits, parts of circuits and knock-outs on the same prompts: what does not depend on them runs once.

What was measured is remembered by what was left in the model, so that no question is paid for twice; with a file to
remember it in, a stopped run asks again and has the answers at once.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitome.engine.batches import tokens_within
from circuitome.engine.circuit_run import Baseline, check_graph, circuit_logits
from circuitome.engine.incremental import IncrementalCircuit
from circuitome.engine.knock_out import KnockOut
from circuitome.engine.partial_forward import dense_copies
from circuitome.engine.readout import Readout, check_numbers
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.graph.circuits import Circuit

SAVE_EVERY = 10.0
"""Seconds between two writings of what is remembered."""
AT_ONCE = 64
"""Questions after which answers are noted; where baselines do not fit, they are made again so often."""
CLEAN = hashlib.blake2b(b"clean", digest_size=16).digest()
"""Key of what the whole model gives."""


class Evaluator:
    """The metric of circuits and knock-outs of one model on one task."""

    def __init__(self, setting: Setting) -> None:
        """Baselines are made when first needed, and kept where all of them fit into the setting's memory budget.

        The setting's checkpoint is a file for what was measured. Raises `RunError` where it belongs to other prompts,
        weights or another ablation.
        """
        self.setting, self.model, self.task, self.ablation = setting, setting.model, setting.task, setting.ablation
        tokens = sum(len(pair.clean) for pair in self.task.pairs)
        share = 2 if setting.max_memory is None else 4  # under a budget that was given circuits take most of it
        self.fits = share * tokens <= tokens_within(self.model, setting.max_memory, gradients=False)
        self.baselines: list[Baseline] = []
        self.known: dict[bytes, Float[Tensor, " prompts"]] = {}
        self.checkpoint = setting.kept("validation")
        self.saved = time.monotonic()
        if before := self.checkpoint.read():
            keys, values = before[0]["keys"], before[0]["values"]
            self.known = {bytes(key.tolist()): value for key, value in zip(keys, values, strict=True)}

    def bases(self) -> Iterator[Baseline]:
        """The baseline of every batch."""
        if self.baselines:
            yield from self.baselines
            return
        made = []
        for base in self.setting.baselines():
            if self.fits:
                made.append(base)
            yield base
        self.baselines = made

    @cached_property
    def gap(self) -> float:
        """Mean metric of the whole model minus that with everything ablated: what a share is of."""
        return float(self.clean.mean() - self.empty.mean())

    def checked_gap(self) -> float:
        """`gap`, or an error where it is not above 0.

        Raises `InputError` where the model does not do the task: then there is no behaviour to explain; `NumericsError`
        where a metric is not finite.
        """
        empty, clean = self.empty, self.clean
        for name, values in (("clean", clean), (f"{self.ablation}-ablated", empty)):
            check_numbers(values, f"metric of {self.model.name} on {name} prompts of {self.task.name}")
        if not self.gap > 0:
            raise InputError(
                f"{self.model.name} does not do the task {self.task.name}: its mean {self.task.measure} is "
                f"{float(clean.mean()):.3f} on clean prompts and {float(empty.mean()):.3f} with everything ablated "
                f"({self.ablation}), so there is no behaviour to explain. Try another model, other prompts, or check "
                "that answer and wrong are not swapped."
            )
        return self.gap

    def samples(self, metric: Float[Tensor, " prompts"]) -> Float[Tensor, "prompts 3"]:
        """A circuit's metric beside that of the whole model and of the empty circuit: what shares are made of."""
        return torch.stack([metric, self.clean, self.empty], 1)

    @property
    def empty(self) -> Float[Tensor, " prompts"]:
        """The metric with everything ablated."""
        return self.circuits([Circuit.empty(self.model.graph)])[0]

    @property
    def clean(self) -> Float[Tensor, " prompts"]:
        """The metric of the whole model; measured along with whatever is asked first."""
        if CLEAN not in self.known:
            self.circuits([Circuit.empty(self.model.graph)])
        return self.known[CLEAN]

    def circuits(
        self, circuits: Sequence[Circuit], what: str = "measuring circuits"
    ) -> Float[Tensor, "circuits prompts"]:
        """The metric of each circuit, everything outside it ablated; `what` names the work for progress.

        Raises `InputError` for a circuit of another model.
        """
        for circuit in circuits:
            check_graph(self.model, circuit)
        keys = [_key("circuit", circuit.mask) for circuit in circuits]

        def measure(base: Baseline, new: list[int]) -> Iterator[tuple[list[int], Tensor]]:
            rows = list(base.batch.rows)
            for i in new:
                yield [i], self.task.score(circuit_logits(self.model, base, circuits[i]), rows)[None]

        return self._answers(keys, measure, what)

    def parts(
        self, circuit: Circuit, gone: Bool[Tensor, "parts writers readers"], what: str = "measuring parts"
    ) -> Float[Tensor, "parts prompts"]:
        """The metric of `circuit` without the edges in `gone`, part by part: as `circuits`, for far less.

        Neighbours in `gone` that leave out edges of the same layers cost least. Raises as `circuits`.
        """
        check_graph(self.model, circuit)
        keys = [_key("circuit", circuit.mask & ~left_out) for left_out in gone]
        made: dict[int, IncrementalCircuit] = {}

        def measure(base: Baseline, new: list[int]) -> Iterator[tuple[list[int], Tensor]]:
            if id(base) not in made:
                made.clear()  # the last batch's is not needed any more
                made[id(base)] = IncrementalCircuit(self.model, base, circuit)
            run, readout = made[id(base)], Readout(self.model, self.task, base.batch.rows, "metric")
            step = run.at_once(self.setting.max_memory)
            for some in (new[i : i + step] for i in range(0, len(new), step)):
                yield some, -readout(run.final_without(gone[some]))

        return self._answers(keys, measure, what)

    def ablate(
        self, sets: Bool[Tensor, "sets writers"], what: str = "measuring knock-outs"
    ) -> Float[Tensor, "sets prompts"]:
        """The metric of the whole model with each set of writers ablated, everything else reacting."""
        keys = [_key("ablated", writers) for writers in sets]

        def measure(base: Baseline, new: list[int]) -> Iterator[tuple[list[int], Tensor]]:
            run, readout = KnockOut(self.model, base), Readout(self.model, self.task, base.batch.rows, "metric")
            step = dense_copies(self.model, base.batch.clean, self.setting.max_memory)
            for some in (new[i : i + step] for i in range(0, len(new), step)):
                yield some, -readout(run.final(sets[some]))

        return self._answers(keys, measure, what)

    def logits(self, circuit: Circuit | None = None) -> Float[Tensor, "prompts vocab"]:
        """All logits of one circuit, or of the whole model; not remembered."""
        if circuit is not None:
            check_graph(self.model, circuit)
        rows, parts = list[int](), list[Tensor]()
        with torch.no_grad():
            for base in self.bases():
                clean = base.batch.clean
                logits = self.model.logits(clean) if circuit is None else circuit_logits(self.model, base, circuit)
                parts.append(logits.cpu())
                rows += base.batch.rows
        return torch.cat(parts)[torch.tensor(rows).argsort()]

    def _answers(
        self,
        keys: Sequence[bytes],
        measure: Callable[[Baseline, list[int]], Iterator[tuple[list[int], Tensor]]],
        what: str,
    ) -> Float[Tensor, "questions prompts"]:
        """What is asked by `keys`, measured batch by batch where it is not known yet."""
        new = [i for i, key in enumerate(keys) if key not in self.known and key not in keys[:i]]
        answers = torch.empty(len(keys), len(self.task))
        done, total = (len(keys) - len(new)) * len(self.task), len(keys) * len(self.task)
        with torch.no_grad():
            for group in (new[i : i + AT_ONCE] for i in range(0, len(new), AT_ONCE)):
                clean = None if CLEAN in self.known else torch.empty(len(self.task))
                for base in self.bases():
                    rows = list(base.batch.rows)
                    if clean is not None:
                        clean[rows] = self.task.score(self.model.logits(base.batch.clean), rows).cpu()
                    for questions, values in measure(base, group):
                        answers[torch.tensor(questions)[:, None], torch.tensor(rows)] = values.cpu()
                        done += len(questions) * len(rows)
                        self.setting.progress(what, done, total)
                self.known |= {keys[i]: answers[i].clone() for i in group}
                self.known |= {} if clean is None else {CLEAN: clean}
                self.save(SAVE_EVERY)
        return torch.stack([self.known[key] for key in keys]) if keys else answers

    def save(self, after: float = 0.0) -> None:
        """Write what is known to the file, where there is one, unless that was done less than `after` seconds ago."""
        if not self.known or time.monotonic() - self.saved < after:
            return
        keys = torch.tensor([list(key) for key in self.known], dtype=torch.uint8)
        self.checkpoint.write({"keys": keys, "values": torch.stack(list(self.known.values()))}, {})
        self.saved = time.monotonic()


def _key(kind: str, mask: Bool[Tensor, "..."]) -> bytes:
    """A short name for one question: what is done with the parts or edges of `mask`."""
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    digest.update(mask.cpu().numpy().tobytes())
    return digest.digest()
