"""One description of any change of a model's behaviour: made once, applied anywhere, added to others, saved."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.editing.changes import Added, Change, Clamped, Removed, Replaced, Scaled
from circuitome.engine.interventions.positions import At
from circuitome.engine.interventions.prompts import token_ids
from circuitome.engine.interventions.replace_parts import part_groups
from circuitome.engine.interventions.sites import site as site_of
from circuitome.engine.interventions.values import written
from circuitome.errors import InputError, NumericsError, unknown_name
from circuitome.features.dictionary import Dictionary
from circuitome.models.model import Model
from circuitome.tasks.task import Task

MEANS = ("zero", "mean")
"""What ablated parts can write in an edit: what belongs to single prompts is none."""


@dataclass(frozen=True)
class Edit:
    """Changes of a model's behaviour that hold for any prompt; `a + b` has the changes of both.

    Made by `Edit.ablate`, `scale`, `add`, `remove` and `clamp`; in force inside `with model.edited(edit)`, in every
    pass of `model.hf`, `generate` included. Changes nest in their order: at one place the first acts first.

    >>> model = cm.load("known-ioi")
    >>> edit = cm.Edit.ablate(model, "a1.h0") + cm.Edit.scale(model, ["a2.h0", "a2.h1"], 0.5)
    >>> print(edit)
    a1.h0 replaced; a2.h0, a2.h1 times 0.5
    >>> prompt = {"input_ids": torch.tensor([model.encode("Ann and Bob met then Bob gave to")])}
    >>> with model.edited(edit):
    ...     model.decode([int(model.hf(**prompt).logits[0, -1].argmax())])
    'Bob'
    """

    changes: tuple[Change, ...] = ()
    """What changes, in order."""

    def __add__(self, other: "Edit") -> "Edit":
        return Edit((*self.changes, *other.changes))

    def __str__(self) -> str:
        return "; ".join(map(str, self.changes)) or "nothing"

    @classmethod
    def ablate(
        cls,
        model: Model,
        parts: str | Sequence[str],
        *,
        value: str = "zero",
        prompts: Any = None,
        task: Task | None = None,
        at: At = "all",
    ) -> "Edit":
        """`parts` (heads, attentions, MLPs, neurons) write zero, or their mean over `prompts` or corrupted prompts.

        Means are measured once, here, over all tokens, in one pass. Raises as `cm.ablate`, `UnknownNameError` for
        another value.
        """
        if value not in MEANS:
            raise unknown_name("value of an edit", value, MEANS, "Values of single prompts belong to cm.ablate.")
        groups = part_groups(model, parts)
        if value == "zero":
            return cls((Replaced({str(node): torch.zeros(()) for group in groups for node in group}, at),))
        if prompts is None and task is None:
            raise InputError('value="mean" is a mean over prompts: give prompts=... or task=....')
        rows = [pair.corrupted for pair in task.pairs] if prompts is None and task else token_ids(model, prompts)
        values = [torch.cat(each).mean(0) for each in written(model, rows, groups, None)]
        named = zip(groups, values, strict=True)
        return cls((Replaced({str(node): own for g, v in named for node, own in zip(g, v, strict=True)}, at),))

    @classmethod
    def scale(cls, model: Model, parts: str | Sequence[str], factor: float, *, at: At = "all") -> "Edit":
        """`parts` write `factor` times what they would. Raises as `cm.scale`."""
        names = tuple(str(node) for group in part_groups(model, parts) for node in group)
        return cls((Scaled(names, _finite("Parts cannot be scaled by", factor), at),))

    @classmethod
    def add(cls, model: Model, site: str, vector: Float[Tensor, " d_model"], *, at: At = "all") -> "Edit":
        """`vector` is added to the stream at `site`, such as m15.resid_post, at every position or those of `at`.

        Raises `UnknownNameError` for no site, `InputError` for a site that is not of the stream or another shape,
        `NumericsError` for NaN.
        """
        where = site_of(model, site)
        if where.what not in ("resid_pre", "resid_mid", "resid_post", "embed", "final"):
            raise InputError(f"{site} is not in the residual stream; add a vector at a site such as m15.resid_post.")
        return cls((Added(site, _direction(model, vector), at),))

    @classmethod
    def remove(cls, model: Model, direction: Float[Tensor, " d_model"], *, at: At = "all") -> "Edit":
        """Nothing is written along `direction`: r of norm 1 gives x - r (r . x) of all that is added to the stream.

        Source: Arditi et al. 2024, arXiv:2406.11717, equation 4. Raises `InputError` for another shape or a vector of
        zeros, `NumericsError` for NaN.
        """
        if not float(_direction(model, direction).norm()):
            raise InputError("The direction is a vector of zeros; there is nothing to remove.")
        return cls((Removed(direction, at),))

    @classmethod
    def clamp(cls, dictionary: Dictionary, feature: int, value: float, *, at: At = "all") -> "Edit":
        """Feature number `feature` of a dictionary is held at `value`; what the dictionary does not explain stays.

        As `cm.features.clamped`, which takes several features. Raises `NumericsError` for a value that is not finite.
        """
        return cls((Clamped(dictionary, feature, _finite("A feature cannot be held at", value), at),))

    @contextmanager
    def applied(self, model: Model) -> Iterator[None]:
        """Inside, the model has all changes. `model.edited(edit)` is the same."""
        with model.locked(), ExitStack() as stack:
            for change in self.changes:
                stack.enter_context(change.applied(model))
            yield

    def save(self, model: Model, folder: str | Path) -> Path:
        """An ordinary Hugging Face checkpoint of the edited model, with its tokenizer, in `folder`.

        It gives the edited model's logits without this package; that is measured before it is written. See
        `circuitome.editing.checkpoint` for what can be written into weights. Raises `InputError` for what cannot, and
        for a folder that is not empty.
        """
        from circuitome.editing.checkpoint import save_edited

        return save_edited(self, model, Path(folder))


def _finite(what: str, value: float) -> float:
    if not torch.isfinite(torch.tensor(float(value))):
        raise NumericsError(f"{what} {value}; give a finite number.")
    return float(value)


def _direction(model: Model, vector: Tensor) -> Tensor:
    """The vector. Raises `InputError` unless it is one of the stream, `NumericsError` for NaN or infinity."""
    if vector.shape != (model.d_model,):
        raise InputError(
            f"A direction of {model.name} has {model.d_model} numbers; this one has shape {list(vector.shape)}."
        )
    if not bool(torch.isfinite(vector).all()):
        raise NumericsError("The direction holds NaN or infinity.")
    return vector.detach()
