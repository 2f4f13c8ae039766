"""From settings to a saved run: what every study gets without a line of its own.

Command line, manifest, folder, what is kept for resuming, page, and what a run would cost.
"""

import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from circuitome.allocator import give_back_freed, trimming
from circuitome.discovery.attribution.edges import no_path
from circuitome.engine.batches import tokens_within
from circuitome.engine.circuit_run import circuit_bytes
from circuitome.errors import CircuitomeError, WorkersLostError
from circuitome.models.model import Inputs, Model
from circuitome.present.page import page
from circuitome.present.stored import document, dumped
from circuitome.progress import Progress, of_whole, silent
from circuitome.runs.record import described_task, recorded
from circuitome.runs.store import Run, check_free, locked, open_partial, plain, save_run
from circuitome.studies.context import Context
from circuitome.studies.memory import weight_bytes
from circuitome.studies.operations import forward_operations, operations, product_operations
from circuitome.studies.settings import PromptSettings, RunSettings, Settings, command_line
from circuitome.studies.study import Findings, Study, Work

BACKWARD, CIRCUIT = 2.2, 1.2
"""What a forward and backward pass, and a circuit's pass, cost in forward passes; measured on SmolLM2.

In operations that is 2 and, with all edges open, 1.4 there: what autograd keeps takes time and no operations, and most
circuits that are run are sparse.
"""
PROGRAM = 520_000_000
"""Bytes of the program itself, on Linux with torch for the CPU."""
TIMED = 8
"""Texts in the pass that is timed."""


def perform(
    study: Study,
    settings: Settings,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
    models: dict[tuple[str, str | None, str | None], Model] | None = None,
) -> tuple[Run, Path]:
    """Do the study, save its run with its page, and give the run and its folder (`out`, or under runs/).

    What long methods keep for `resume` lies beside the folder and goes when the run is saved. A folder that cannot take
    the run is refused before the work, as is one for which another process is at work. `models` keeps loaded models
    for further runs. Raises what settings, models and methods raise; bad input leaves nothing behind.
    """
    settings.check()
    if settings.max_memory is not None:  # without a budget, time counts for more
        give_back_freed()
        progress = trimming(progress)
    folder = out or default_folder(study, settings)
    with locked(folder, wait=False):
        return perform_locked(study, settings, folder, resume=resume, progress=progress, models=models), folder


def perform_locked(
    study: Study,
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress = silent,
    models: dict[tuple[str, str | None, str | None], Model] | None = None,
) -> Run:
    """What `perform` does for a folder that the caller has locked."""
    if folder.is_file() or (folder.exists() and not (folder / "manifest.json").is_file()):
        check_free(folder, "")
    command = command_line(study.name, settings)
    partial = open_partial(folder, command, resume=resume)
    start = time.perf_counter()
    context = Context(settings, progress, partial, models)
    try:
        if progress is not silent:
            context.watch(of_whole(progress, estimate(study, settings, context).seconds))
        findings = study.run(settings, context)
    except (CircuitomeError, KeyboardInterrupt) as error:
        refused = isinstance(error, CircuitomeError) and not isinstance(error, WorkersLostError)
        if not resume and (refused or not kept(partial)):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    run = Run(manifest(study, settings, context, findings, start), dict(findings.tensors))
    save_run(run, folder, {**findings.files, "report.html": page(document(run, folder))})
    return run


def default_folder(study: Study, settings: Settings) -> Path:
    """Where a run goes when nobody says: under runs/, or beside the run that it is about."""
    if isinstance(settings, RunSettings):
        return Path(settings.run).resolve().parent / settings.folder_name(study.name)
    return Path("runs") / settings.folder_name(study.name)


def kept(partial: Path) -> bool:
    """Whether a stopped run has kept anything that `--resume` could go on from."""
    return any(path.name != "command.txt" for path in partial.iterdir())


def manifest(study: Study, settings: Settings, context: Context, findings: Findings, start: float) -> dict[str, Any]:
    """Exactly what was done and what came out, as plain JSON values."""
    command, held = command_line(study.name, settings), vars(context)
    model, task = held.get("model"), held.get("task")
    data = str(findings.more.get("data_hash", "")) if task is None else task.data_hash()
    return plain(  # type: ignore[no-any-return]
        {
            **recorded(study.name, command, model=model, asked=_asked(settings, context), data=data),
            "title": findings.title,
            "sign": findings.sign,
            "seed": settings.seed,
            "settings": asdict(settings),
            **_about_prompts(settings, context),
            **findings.more,
            "results": findings.results,
            "blocks": dumped(findings.blocks),
            "seconds": round(time.perf_counter() - start, 2),
        }
    )


def _asked(settings: Settings, context: Context) -> str:
    """The name by which the model was asked for."""
    return context.reopened.origin.model if isinstance(settings, RunSettings) else str(getattr(settings, "model", ""))


def _about_prompts(settings: Settings, context: Context) -> dict[str, Any]:
    if not isinstance(settings, (PromptSettings, RunSettings)):
        return {}
    about: dict[str, Any] = {**described_task(context.model, context.task), "ablation": context.ablation}
    if isinstance(settings, RunSettings):
        run = context.reopened.run.manifest
        about["run"] = {"folder": settings.run, "key": run["key"], "command": run["command"]}
        return {**about, "prompts_from": context.reopened.origin.to_dict()}
    return {**about, "prompts_from": settings.origin().to_dict()}


@dataclass(frozen=True)
class Cost:
    """What a run will cost."""

    passes: dict[str, float]
    """Passes over all texts by kind: forward, forward-backward, circuit."""
    texts: int
    """Prompts or pieces of text that each pass runs over."""
    seconds: float
    """Estimate from one timed pass on this machine."""
    bytes: int
    """Estimate of the peak memory: weights, one batch, and the program itself."""
    operations: float
    """Arithmetic operations of the passes, see `operations.py`."""
    notes: dict[str, Any]
    """What else is known beforehand."""


def cost(study: Study, settings: Settings, progress: Progress = silent) -> Cost:
    """What the study would cost: passes counted, seconds from one timed pass, bytes from the memory model.

    Loads the model and draws the prompts, which the run would have to do as well, but does none of the work. Raises as
    `perform` does before the work.
    """
    settings.check()
    if settings.max_memory is not None:
        give_back_freed()
    start = time.perf_counter()
    expected = estimate(study, settings, Context(settings, progress))
    return replace(expected, seconds=expected.seconds + time.perf_counter() - start)


def estimate(study: Study, settings: Settings, context: Context) -> Cost:
    """What the study would cost in a context, whose model and prompts are made for it if they are not there yet."""
    work = study.work(settings, context)
    passes = {"forward": work.forward, "forward-backward": work.backward, "circuit": work.circuit}
    shown = {kind: round(count, 1) for kind, count in passes.items() if count}
    if not shown:
        return Cost({}, work.texts, work.seconds, PROGRAM + (work.bytes or 0), 0.0, dict(work.notes))
    model = context.model
    like_passes = work.forward + CIRCUIT * work.circuit + work.rest
    products = work.products * product_operations(model) / forward_operations(model, work.tokens)
    like_passes += (BACKWARD * work.backward + products) * work.varied
    return Cost(
        shown,
        work.texts,
        _timed(model, work, settings.max_memory) * like_passes,
        _bytes(model, work, settings.max_memory),
        operations(model, work),
        dict(work.notes),
    )


def _timed(model: Model, work: Work, max_memory: int | None) -> float:
    """Seconds of a forward pass over all texts, from some of them that fit the budget."""
    # Texts that the model cannot take are refused by the run, whose message says more.
    tokens = min(work.tokens, model.positions or work.tokens)
    some = max(1, min(TIMED, work.texts, tokens_within(model, max_memory, gradients=False) // max(1, tokens)))
    inputs = Inputs.whole(torch.ones(some, tokens, dtype=torch.long, device=model.device))
    with torch.no_grad():
        model.logits(inputs)  # the first pass of a process also warms caches up
        start = time.perf_counter()
        model.logits(inputs)
    return (time.perf_counter() - start) * work.texts / some


def _bytes(model: Model, work: Work, max_memory: int | None) -> int:
    """Weights, the program, and the largest batch of all kinds of passes."""
    weights = round(weight_bytes(model) * (1 + work.copies))
    if work.bytes is not None:
        return weights + work.bytes + PROGRAM
    # Of what both prompts of a pair begin with, keys and values stay: a tenth of the memory.
    all_tokens = math.ceil(work.texts * work.tokens * (work.varied + (1 - work.varied) / 10))
    batches = []
    less = 0 if work.path or not work.backward else no_path(model)
    for gradients, beside in (
        (work.backward > 0, less),
        (False, circuit_bytes(model, max_memory) if work.circuit else 0),
    ):
        fits = tokens_within(model, max_memory, gradients=gradients, beside=beside)
        each = model.least_bytes_per_token(gradients=gradients)  # the whole, unless what is recorded waits elsewhere
        at_once = min(max(fits, work.tokens), all_tokens)
        batches.append(at_once * (each + beside))
    return weights + max(batches) + PROGRAM
