"""What a dictionary reads and describes, on texts: passes that end behind its layer, with no logits."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.engine.batches import tokens_within
from circuitome.engine.interventions.hook_sites import hook
from circuitome.engine.setting import Setting
from circuitome.errors import MemoryBudgetError, memory_option
from circuitome.features.places import Place
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.neurons.counting import special_tokens
from circuitome.neurons.text_windows import Windows

PASS = 2048
"""Tokens of a pass; more are no faster on a processor. On an accelerator the memory budget decides."""

MASSIVE = 10.0
"""Times the median norm, above which a token is left out: a few tokens that carry no content, such as those that
attention rests on, have norms a hundred times those of all others and would be all that a squared error sees
(Sun et al. 2024, arXiv:2402.17762)."""


@dataclass(frozen=True, eq=False)
class Activations:
    """Values at the counted tokens of some windows."""

    given: Float[Tensor, "token d_in"]
    """What the dictionary reads, float32."""
    target: Float[Tensor, "token d_out"]
    """What it describes; the same tensor where that is what it reads."""
    window: Int[Tensor, " token"]
    """The window of each token."""
    position: Int[Tensor, " token"]
    """Its position in the window."""

    def __len__(self) -> int:
        return len(self.given)

    def ordinary(self, limits: tuple[float, float]) -> "Activations":
        """Without the tokens at which what is read or described has a norm above its limit (see `MASSIVE`)."""
        kept = (self.given.norm(dim=1) <= limits[0]) & (self.target.norm(dim=1) <= limits[1])
        given = self.given[kept]
        target = given if self.target is self.given else self.target[kept]
        return Activations(given, target, self.window[kept], self.position[kept])

    def limits(self) -> tuple[float, float]:
        """Norms above which a token counts as massive, by what is read and what is described."""
        given, target = (MASSIVE * float(x.norm(dim=1).median()) for x in (self.given, self.target))
        return given, target


def counted(model: Model, inputs: Inputs) -> Bool[Tensor, "window pos"]:
    """Which tokens count: not padding, not the first of a window, whose values are unlike all others, not special."""
    where = inputs.real().bool() & ~torch.isin(inputs.ids, special_tokens(model).to(inputs.ids.device))
    where[:, 0] = False
    return where


def at_once(setting: Setting, length: int) -> int:
    """Windows of a pass. Raises `MemoryBudgetError` where not even one fits the budget."""
    model = setting.model
    fits = tokens_within(model, setting.max_memory, gradients=False)
    if fits < length:
        need = length * model.bytes_per_token(gradients=False)
        raise MemoryBudgetError(
            f"One window of {length} tokens takes about {need / 1e6:,.0f} MB beside the weights. Raise "
            f"{memory_option(need)}, or shorten the windows."
        )
    return max(1, (min(fits, PASS) if model.device.type == "cpu" else fits) // length)


def values_at(model: Model, names: Iterable[str], inputs: Inputs, end: int) -> dict[str, Tensor]:
    """By name of a site, its values [window, pos, width] in a pass that ends in front of block `end`."""
    seen: dict[str, Tensor] = {}

    def look(name: str) -> Callable[[Tensor], None]:
        return lambda values: seen.update({name: values})

    with torch.no_grad(), ExitStack() as stack:
        for name in names:
            stack.enter_context(hook(model, name, look(name)))
        model.run_to(inputs, end)
    return seen


def passes(setting: Setting, place: Place, texts: Windows, rows: range | None = None) -> Iterator[Activations]:
    """The values at `place` on some windows (None: all), pass by pass; each pass ends behind the layer.

    They stay on the model's device. Raises as `at_once`.
    """
    model, size = setting.model, at_once(setting, texts.length)
    rows = range(len(texts)) if rows is None else rows
    for start in range(rows.start, rows.stop, size):
        some = range(start, min(start + size, rows.stop))
        inputs = texts.inputs(model, some)
        seen = values_at(model, {place.reads, place.describes}, inputs, place.layer + 1)
        where = counted(model, inputs)
        given = seen[place.reads][where].float()
        target = given if place.one_site else seen[place.describes][where].float()
        window, position = where.nonzero(as_tuple=True)
        yield Activations(given, target, window + start, position)


def gathered(
    setting: Setting, place: Place, texts: Windows, rows: range, tell: Callable[[int], None] = lambda window: None
) -> Activations:
    """The values on some windows, all passes as one; `tell` is called with the windows behind which each pass ends."""
    parts = list[Activations]()
    for part in passes(setting, place, texts, rows):
        parts.append(part)
        tell(int(part.window[-1]) + 1 if len(part) else rows.start)
    given = torch.cat([part.given for part in parts])
    target = given if place.one_site else torch.cat([part.target for part in parts])
    window, position = (torch.cat([getattr(part, name) for part in parts]) for name in ("window", "position"))
    return Activations(given, target, window, position)
