"""The training loop: AdamW on a live model, watched, kept, and gone on with after a stop to the same bytes.

Everything that a step reads or draws follows from the seed and the step's number: the rows, their order, dropout. So
the full state is weights, the optimiser's means, and that number; it lies in one safetensors file, which is written
beside and renamed. On one machine a training that was killed ends with the bytes of one that was not.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from circuitome.engine.batches import memory_budget
from circuitome.engine.checkpoint import Checkpoint
from circuitome.errors import InputError, MemoryBudgetError, NumericsError, memory_option
from circuitome.models.loading import weights_hash
from circuitome.models.model import Model
from circuitome.models.saving import write_checkpoint
from circuitome.progress import BESIDE, Progress, silent
from circuitome.results import plain
from circuitome.training.objectives import Objective, next_token, summed
from circuitome.training.schedule import Schedule, log_steps
from circuitome.training.streams import Rows, Stream, as_stream, number, split

METRICS, STATE = "metrics.jsonl", "state.safetensors"
"""Files of a training's folder: a row of numbers a step, and all that is needed to go on."""
SECONDS, SHARE = 30.0, 20
"""The state is written after so many seconds, and after so many times as long as it took to write."""
Watch = Callable[[Model], Mapping[str, Any]]
"""From the live model to numbers by name (or lists of them), which go to the metrics.

One with an attribute `watches` says with it what it measures: a training that measured something else is another.
"""
BeforeStep = Callable[[Model, int, Sequence[Mapping[str, Any]]], Mapping[str, Any] | None]
"""From the live model with its gradients, the number of steps that are done, and their metrics, to what goes to the
metrics of the step that is about to be made."""


@dataclass(frozen=True, eq=False)
class Training:
    """A model that was trained, and what was measured on the way."""

    model: Model
    """The live model that was given, with its new weights."""
    schedule: Schedule
    """How it was trained."""
    history: list[dict[str, Any]]
    """A row a step: `step` (how many were done), `loss` of the batch before the step, its parts, `rate`, `norm` of the
    gradient before it is cut, `tokens` read so far, and at watched steps what `watch` gave. Step 0 is watched only."""
    folder: Path | None
    """Where its metrics, state and checkpoints are; None where nothing was kept."""

    def __repr__(self) -> str:
        last = self.history[-1]
        return (
            f"Training({self.model.name}, {last['step']:,} steps, {last['tokens']:,} tokens, loss {last['loss']:.3f})"
        )

    def curve(self, name: str = "loss") -> tuple[list[int], list[float]]:
        """Steps, and one number after each of them; steps without it are left out.

        Raises `InputError` for a name that no row has.
        """
        rows = [(row["step"], row[name]) for row in self.history if name in row]
        if not rows:
            known = sorted({key for row in self.history for key in row})
            raise InputError(f"Nothing called {name!r} was measured in this training, only {', '.join(known)}.")
        steps, values = zip(*rows, strict=True)
        return list(steps), list(values)

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint after a step. Raises `InputError` where none was written."""
        if self.folder is None or not (folder := _checkpoint(self.folder, step)).is_dir():
            raise InputError(f"No checkpoint was written after step {step}. Give train(..., checkpoints=[{step}]).")
        return folder


def train(
    model: Model,
    data: Stream | Callable[[int, torch.Generator], Tensor | Rows],
    schedule: Schedule,
    *,
    objective: Objective = next_token,
    folder: str | Path | None = None,
    watch: Sequence[Watch] = (),
    at: Iterable[int] | None = None,
    checkpoints: Iterable[int] = (),
    before_step: Sequence[BeforeStep] = (),
    after_step: Sequence[Callable[[Model, int], None]] = (),
    max_memory: int | None = None,
    log: Callable[[dict[str, Any]], Any] | None = None,
    progress: Progress = silent,
) -> Training:
    """Train the live model, in place, on a stream of token batches.

    Each step makes the `objective` smaller on the rows that `data` gives for it (a `Stream`, or a function of the step
    and a generator), a part of the rows at a time, as `max_memory` allows. `watch` functions see the live model at the
    steps `at` (None: `log_steps`); `before_step` may change gradients before they are cut, and `after_step` weights
    after each step of the optimiser. Frozen parameters stay. `log` is told each row of the metrics: wandb's `run.log`,
    `trackio.log`.

    In `folder` go metrics.jsonl, a Hugging Face checkpoint after each step of `checkpoints`, and the full state, from
    which the same call goes on, with the same bytes at the end. The loss is that of training mode, dropout included.

    >>> model = cm.training.untrained(cm.load("known-ioi"))
    >>> stream = cm.training.text_stream(model, "Ann and Bob met then Bob gave to")
    >>> cm.training.train(model, stream, cm.training.Schedule(steps=20, batch=4, length=8)).curve()[0][-1]
    20

    Raises `InputError` for a model in half precision, whose small steps would be lost, `MemoryBudgetError` where not
    even one row fits, `NumericsError` where the training diverges, `RunError` for the folder of another training.
    """
    model.check_open("Training")
    if model.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{model.name} is in {str(model.dtype).removeprefix('torch.')}, in which most steps of a training are "
            "rounded away. Load it with dtype=torch.float32; passes run in bfloat16 where the machine has it."
        )
    at = log_steps(schedule.steps) if at is None else at
    run = Loop(model, as_stream(data), schedule, objective, None if folder is None else Path(folder), max_memory)
    run.watch, run.at, run.checkpoints = tuple(watch), frozenset(at), frozenset(checkpoints)
    run.before_step, run.after_step = before_step, after_step
    run.log, run.progress = log, progress
    return run.run()


class Loop:
    """A training while it runs."""

    watch: Sequence[Watch] = ()
    at: frozenset[int] = frozenset()
    checkpoints: frozenset[int] = frozenset()
    before_step: Sequence[BeforeStep] = ()
    after_step: Sequence[Callable[[Model, int], None]] = ()
    log: Callable[[dict[str, Any]], Any] | None = None
    progress: Progress = staticmethod(silent)

    def __init__(
        self,
        model: Model,
        data: Stream,
        schedule: Schedule,
        objective: Objective,
        folder: Path | None,
        max_memory: int | None,
    ) -> None:
        self.model, self.data, self.schedule, self.objective, self.folder = model, data, schedule, objective, folder
        self.parameters = {name: p for name, p in model.hf.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise InputError(f"All parameters of {model.name} are frozen, so there is nothing to train.")
        self.rows = rows_within(model, schedule, max_memory)
        device = model.device
        wanted = schedule.autocast
        self.autocast = device.type == "cuda" and torch.cuda.is_bf16_supported() if wanted is None else wanted
        self.optimizer = self._optimizer()
        self.history = list[dict[str, Any]]()

    def _optimizer(self) -> torch.optim.AdamW:
        groups = [
            {"params": [p for p in self.parameters.values() if (p.ndim >= 2) == decays], "weight_decay": decay}
            for decays, decay in ((True, self.schedule.weight_decay), (False, 0.0))
        ]
        return torch.optim.AdamW([group for group in groups if group["params"]], betas=self.schedule.betas, fused=True)

    def _kept(self) -> Checkpoint:
        """The file of the state; that of other data, weights, another schedule or other interventions is refused."""
        if self.folder is None:
            return Checkpoint(None, "training")
        self.folder.mkdir(parents=True, exist_ok=True)
        digest, schedule = hashlib.blake2b(digest_size=16), self.schedule
        for step in (0, schedule.steps // 2, schedule.steps - 1):
            tokens = self.data.batch(step, schedule.batch, schedule.length, schedule.seed)
            digest.update(tokens.ids.long().cpu().numpy().tobytes())
        acts = [described(act) for act in (self.objective, *self.before_step, *self.after_step)]
        watched = [look.watches for look in self.watch if hasattr(look, "watches")]
        acts += [f"watched: {names}" for names in watched if names]
        key = [weights_hash(self.model), digest.hexdigest(), acts, sorted(self.parameters), asdict(schedule)]
        return Checkpoint(self.folder / STATE, "training", *key)

    def run(self) -> Training:
        """All steps, from where an earlier run stopped."""
        self.kept = self._kept()
        with self.model.locked(), ExitStack() as stack:
            for module in self.model.hf.modules():
                stack.callback(setattr, module, "training", module.training)
            device = self.model.device
            stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
            self.model.hf.train()
            start = self._restored()
            rows = stack.enter_context(self._metrics()) if self.folder else None
            self._steps(start, rows)
            self.optimizer.zero_grad()
        return Training(self.model, self.schedule, self.history, self.folder)

    def _steps(self, start: int, rows: Any) -> None:
        last = time.monotonic()
        wait, total = SECONDS, self.schedule.steps
        for done in range(start, total + 1):
            if done > start or not done:
                row = self._step(done - 1) if done else {"step": 0, "tokens": 0}
                self._look(done, row)
                self.history.append(row)
                if rows is not None:
                    rows.write(json.dumps(row) + "\n")
                    rows.flush()
                if self.log is not None:
                    self.log(row)
            loss = self.history[-1].get("loss")  # not there before the first step
            self.progress("training" if loss is None else f"training{BESIDE}loss {loss:.3f}", done, total)
            if self.folder is not None and done > start and (done == total or time.monotonic() - last > wait):
                began = time.monotonic()
                self._write(done)
                last = time.monotonic()
                wait = max(SECONDS, SHARE * (last - began))

    def _look(self, done: int, row: dict[str, Any]) -> None:
        """What is watched after `done` steps, and the checkpoint."""
        if done in self.at:
            for look in self.watch:
                row |= {str(name): plain(value) for name, value in look(self.model).items()}
        if done in self.checkpoints and self.folder is not None:
            write_checkpoint(self.model, _checkpoint(self.folder, done), replace=True)

    def _step(self, step: int) -> dict[str, Any]:
        """One step of the optimiser, and its row of the metrics."""
        schedule, device = self.schedule, self.model.device
        torch.manual_seed(number(schedule.seed, step, "dropout"))
        tokens = self.data.batch(step, schedule.batch, schedule.length, schedule.seed).to(device)
        self.optimizer.zero_grad()
        sums, count = dict[str, Tensor](), max(1, tokens.predicted)
        for part in split(tokens, self.rows):
            with torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext():
                loss = self.objective(self.model, part)
            share = part.predicted / count
            parts = {"loss": loss} if isinstance(loss, Tensor) else {"loss": summed(loss), **loss}
            (parts["loss"] * share).backward()
            for name, value in parts.items():
                sums[name] = sums.get(name, 0) + value.detach() * share
        told = dict[str, Any]()
        for before in self.before_step:
            told |= before(self.model, step, self.history) or {}
        norm = torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), schedule.clip)
        numbers = {name: float(value) for name, value in sums.items()}
        if not all(map(_finite, (*numbers.values(), float(norm)))):
            raise NumericsError(f"Step {step + 1} of the training gave NaN or infinity. Lower the learning rate.")
        rate = schedule.rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for change in self.after_step:
            change(self.model, step + 1)
        read = tokens.ids.numel() + (self.history[-1]["tokens"] if self.history else 0)
        return {"step": step + 1, **numbers, **told, "rate": rate, "norm": float(norm), "tokens": read}

    # Going on

    def _metrics(self) -> Any:
        """The file of metrics with the rows of the steps that are done, open for more."""
        assert self.folder is not None
        path, part = self.folder / METRICS, self.folder / (METRICS + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in self.history), encoding="utf-8")
        os.replace(part, path)
        return path.open("a", encoding="utf-8")

    def _write(self, done: int) -> None:
        """The full state after `done` steps."""
        tensors = {f"model.{name}": value for name, value in _own(self.model).items()}
        for name, value in self.parameters.items():
            tensors |= {f"{key}.{name}": held for key, held in self.optimizer.state.get(value, {}).items()}
        self.kept.write(tensors, {"steps": done, "history": self.history})

    def _restored(self) -> int:
        """How many steps an earlier run has done."""
        if (before := self.kept.read()) is None:
            return 0
        tensors, state = before
        with torch.no_grad():
            for name, value in _own(self.model).items():
                value.copy_(tensors[f"model.{name}"])
        for name, value in self.parameters.items():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            held = {key: tensors[f"{key}.{name}"] for key in keys}
            if held:
                self.optimizer.state[value] = {key: tensor.to(value.device) for key, tensor in held.items()}
        self.history = state["history"]
        return int(state["steps"])


def rows_within(model: Model, schedule: Schedule, max_memory: int | None) -> int:
    """How many rows fit into the budget at once, activations and logits. Raises `MemoryBudgetError` where none does."""
    logits = 4 * 4 * int(model.hf.config.vocab_size)  # logits, their log-softmax, and the gradients of both
    need = schedule.length * (model.bytes_per_token(gradients=True) + logits)
    budget = memory_budget(model, max_memory)
    if need > budget:
        raise MemoryBudgetError(
            f"One row of {schedule.length} tokens needs about {need / 1e6:,.0f} MB beside the weights, the budget "
            f"leaves {budget / 1e6:,.0f} MB for that. Raise {memory_option(need)}, or shorten the rows."
        )
    return min(schedule.batch, budget // need)


def described(act: Any) -> str:
    """What an objective or a change of a step is, with its choices: the same in another process.

    >>> from circuitome.training.loop import described
    >>> described(cm.dynamics.AttentionPenalty(cm.dynamics.previous_token, 2.0))
    'AttentionPenalty(marks=previous_token, strength=2.0, until=None, prediction=next_token)'
    """
    if isinstance(act, MethodType):
        return f"{described(act.__self__)}.{act.__name__}"
    if isinstance(act, partial):
        return f"{described(act.func)}{act.args}{sorted(act.keywords.items())}"
    if is_dataclass(act) and not isinstance(act, type):
        choices = ", ".join(f"{f.name}={described(getattr(act, f.name))}" for f in fields(act) if f.repr)
        return f"{type(act).__qualname__}({choices})"
    plain_value = act is None or isinstance(act, (str, int, float, tuple))
    return repr(act) if plain_value else str(getattr(act, "__qualname__", type(act).__qualname__))


def _own(model: Model) -> dict[str, Tensor]:
    """Parameters and buffers that a checkpoint holds, each once."""
    stored = model.hf.state_dict()
    return {name: value for name, value in (*model.hf.named_parameters(), *model.hf.named_buffers()) if name in stored}


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
