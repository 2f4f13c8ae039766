"""What every method is given, in one value: model, prompts, ablation, memory budget, seed, progress, checkpoint.

A method is written once, as a function of a `Setting`; `method` lets it be called with a model and a task as well:

    @method
    def eap(setting: Setting, *, steps: int) -> EdgeScores: ...

    eap(setting, steps=5)
    eap(model, task, steps=5, ablation="mean", max_memory=2_000_000_000)
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload, runtime_checkable

import torch
from torch import Tensor

from circuitome.engine.ablation import AblationValues, WriterValues, ablated_values, check_ablation
from circuitome.engine.batches import Batch, batches
from circuitome.engine.checkpoint import Checkpoint
from circuitome.engine.circuit_run import Baseline, baseline, circuit_bytes
from circuitome.engine.readout import Readout
from circuitome.errors import InputError
from circuitome.models.loading import weights_hash
from circuitome.models.model import Model
from circuitome.progress import Progress, bars, silent
from circuitome.results import Estimate, bootstrap, mean, over
from circuitome.tasks.task import Task


@dataclass(frozen=True)
class Setting:
    """What a method works on, and what it may cost."""

    model: Model
    """The model; its weights are never changed."""
    prompts: Task | None = None
    """The prompt pairs and their metric; None for what asks the model or its weights alone."""
    ablation: str = "corrupted"
    """What an ablated writer writes: a name in `ABLATIONS`."""
    max_memory: int | None = None
    """Bytes that the work may take beside the weights; None for a default that is nearly as fast as any."""
    seed: int = 0
    """Seed of everything that is drawn: resamples, random circuits, learning."""
    progress: Progress = silent
    """Told what is being done and how much of it is done."""
    checkpoint: Path | None = None
    """File (or, for a suite of measurements, folder) in which long work is kept and from which it goes on."""
    shared_prefix: bool = True
    """Whether the tokens that clean and corrupted prompts share at their beginning run once; the result is the same."""

    def __post_init__(self) -> None:
        check_ablation(self.ablation)
        if self.prompts is not None:
            self.model.check_sums("Prompts that ask for a next token")

    @property
    def task(self) -> Task:
        """The prompts. Raises `InputError` where there are none."""
        if self.prompts is None:
            raise InputError("This needs prompts: call it with a model and a task, for example cm.tasks.ioi(model).")
        return self.prompts

    def but(self, **changes: Any) -> "Setting":
        """This setting with some fields changed."""
        return replace(self, **changes)

    def check_slope(self, method: str, distance: str = "") -> None:
        """Raises `InputError` where what `method` differentiates at the clean model is flat there.

        That is so of a `distance` to the clean model that stands for the metric, and of such a metric.
        """
        measure = self.task.measure
        if flat := distance or (measure.name if measure.flat_at_clean else ""):
            raise InputError(
                f"{method} takes its gradient at the clean model, where that of {flat} (its distance to the clean "
                "model) is zero, so every score would be 0. Use eap_ig, whose gradients are taken on the way there, "
                "exact or acdc."
            )

    def tell(self, what: str) -> Callable[[int, int], None]:
        """Progress on one phase: a function of how much is done and how much there is."""
        return lambda done, total: self.progress(what, done, total)

    @cached_property
    def replacement(self) -> AblationValues:
        """What ablated writers write; made once, which costs a pass over the corrupted prompts for the means."""
        return AblationValues.of(self.model, self.task, self.ablation, self.max_memory)

    def batches(self, what: str = "", *, gradients: bool = False, beside: int = 0) -> Iterator[Batch]:
        """The prompts in batches that fit the budget; corrupted runs stand beside them where values are theirs.

        Where `what` says what is done with them, progress is told of the prompts after each batch. `gradients` says
        whether autograd keeps what it needs of them, and `beside` what else a token takes, which decide their size.
        """
        swaps = self.ablation == "corrupted"
        prefix = swaps and self.shared_prefix
        return self._told(what, swaps, shared_prefix=prefix, gradients=gradients, beside=beside)

    def clean_batches(self, what: str = "") -> Iterator[Batch]:
        """The clean prompts alone and whole, in batches that fit the budget: for what ablates nothing."""
        return self._told(what, False, shared_prefix=False)

    def _told(self, what: str, corrupted: bool, **options: Any) -> Iterator[Batch]:
        done = 0
        for batch in batches(self.model, self.task, corrupted=corrupted, max_memory=self.max_memory, **options):
            yield batch
            done += len(batch.rows)
            if what:
                self.progress(what, done, len(self.task))

    def readout(self, batch: Batch, loss: str = "metric") -> Readout:
        """Losses of runs on a batch from their final residuals; `loss` is a name in `LOSSES`."""
        with torch.no_grad():
            clean = None if loss == "metric" else self.model.logits(batch.clean)
        return Readout(self.model, self.task, batch.rows, loss, clean)

    def ablated_values(self, batch: Batch, clean: WriterValues) -> WriterValues:
        """What ablated writers write on a batch whose clean values are `clean`."""
        return ablated_values(self.model, self.task, batch, self.replacement, clean)

    def baselines(self, what: str = "", *, gradients: bool = False) -> Iterator[Baseline]:
        """Batch by batch, everything that does not depend on a circuit; see `Baseline`, and `batches` for the rest."""
        beside = 0 if gradients else circuit_bytes(self.model, self.max_memory)  # what needs gradients runs no circuits
        for batch in self.batches(what, gradients=gradients, beside=beside):
            yield baseline(self.model, self.task, batch, self.replacement)

    def estimate(self, columns: Tensor, statistic: Callable[[Tensor], Tensor], unit: str) -> Estimate:
        """`statistic` of the means of per-prompt `columns` [prompts, columns], resampled by the task's templates."""
        return bootstrap(columns, statistic, unit, seed=self.seed, groups=self.task.groups)

    def mean(self, values: Tensor, unit: str) -> Estimate:
        """The mean of per-prompt `values`, resampled by the task's templates."""
        return mean(values, unit, seed=self.seed, groups=self.task.groups)

    @property
    def over(self) -> str:
        """What intervals are over, in words: 64 prompts of 4 templates."""
        return over(len(self.task), self.task.groups)

    @cached_property
    def key(self) -> tuple[str, ...]:
        """What decides a result besides the method's own arguments: weights, prompts with their metric, ablation."""
        data = "" if self.prompts is None else self.prompts.data_hash()
        graph = self.model.graph
        parts = (graph.neurons, graph.apart, *((graph.streams, graph.dictionaries) if graph.dictionaries else ()))
        nodes = (str(parts),) if graph.has_parts else ()
        return weights_hash(self.model), data, self.ablation, *nodes

    def kept(self, search: str, *arguments: Any) -> Checkpoint:
        """The file of a search with these arguments (plain JSON); that of another search or model is refused."""
        key = () if self.checkpoint is None else (*self.key, *arguments)
        return Checkpoint(self.checkpoint, search, *key)


F = TypeVar("F", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R", covariant=True)
ON_NEURONS: set[Callable[..., Any]] = set()
"""Methods that know neurons as nodes; see `on_neurons`."""
OPTIONS = tuple(field.name for field in fields(Setting) if field.name not in ("model", "prompts"))
"""Fields of a `Setting` that a method takes as keywords when it is called with a model."""


@runtime_checkable
class Method(Protocol[P, R]):
    """A function of a `Setting`, callable with a model and its prompts as well."""

    @overload
    def __call__(self, setting: Setting, /, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def __call__(self, model: Model, /, *args: Any, **kwargs: Any) -> R: ...


def method(function: Callable[Concatenate[Setting, P], R]) -> Method[P, R]:
    """`function(setting, ...)`, which can also be called as `function(model, task, ...)`.

    Of the positional arguments after the model the first `Task` is the prompts, the others stay in order; keywords
    named like fields of `Setting` (ablation, max_memory, seed, progress, checkpoint) go into the setting;
    `progress=True` draws bars with the time left.
    Raises `TypeError` where the first argument is neither.
    """

    @functools.wraps(function)
    def call(first: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(first, Setting):
            if first.model.graph.has_parts and function not in ON_NEURONS:
                raise InputError(
                    f"{function.__name__} knows MLPs as one node each, and neurons or features of this model are "
                    "nodes. Give it the model without them: model.with_neurons([])."
                )
            with first.model.reserved():
                return function(first, *args, **kwargs)
        if not isinstance(first, Model):
            raise TypeError(
                f"{function.__name__} takes a model and a task, or a Setting; got {type(first).__name__}. "
                "Load one with cm.load(...)."
            )
        at = next((i for i, value in enumerate(args) if isinstance(value, Task)), None)
        prompts = None if at is None else args[at]
        rest = args if at is None else (*args[:at], *args[at + 1 :])
        options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
        if isinstance(watched := options.get("progress"), bool):
            options["progress"] = bars() if watched else silent
        return call(Setting(first, prompts, **options), *rest, **kwargs)

    call.__signature__ = _signature(function)  # what `help` and notebooks show
    return call


def on_neurons(function: F) -> F:
    """Mark a method that also runs on a model some of whose neurons are nodes (`Model.with_neurons`)."""
    ON_NEURONS.add(function)
    return function


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Model, task, the function's own parameters, and the fields of `Setting` as keywords."""
    kind = inspect.Parameter
    own = list(inspect.signature(function).parameters.values())[1:]
    ends = [
        kind(field.name, kind.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Setting)
        if field.name in OPTIONS
    ]
    first = [
        kind("model", kind.POSITIONAL_ONLY, annotation=Model),
        kind("task", kind.POSITIONAL_ONLY, annotation=Task),
    ]
    rest = [parameter for parameter in own if parameter.kind is kind.VAR_KEYWORD]
    return inspect.Signature([*first, *(parameter for parameter in own if parameter not in rest), *ends, *rest])
