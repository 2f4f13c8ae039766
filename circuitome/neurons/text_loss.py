"""The loss on texts while neurons are held, token by token, beside random neurons of the same layers."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitome.engine.batches import memory_budget
from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.models.inputs import Inputs
from circuitome.neurons.held_neurons import control, random_neurons
from circuitome.neurons.text_windows import LENGTH, Windows, windows
from circuitome.results import Estimate, Shown, bootstrap
from circuitome.weights.folding import unembedding_rows

UNIT = "nats a token"
COPIES = 4
"""Times that the logits of a batch are held while its loss is computed."""


def token_losses(
    setting: Setting,
    texts: Windows,
    what: str = "reading texts",
    during: Callable[[Inputs], AbstractContextManager[None]] = lambda inputs: nullcontext(),
) -> Float[Tensor, "window next"]:
    """Negative log-likelihood of tokens 1, 2, ... of each window, in nats; NaN where a window has ended.

    `during` gives what is in force while some windows run.
    """
    model, tell = setting.model, setting.tell(what)
    bytes_each = texts.length * (len(unembedding_rows(model)) * 4 * COPIES + model.bytes_per_token(gradients=False))
    size = max(1, memory_budget(setting.model, setting.max_memory) // bytes_each)
    losses = torch.full((len(texts), texts.length - 1), torch.nan)
    for start in range(0, len(texts), size):
        rows = range(start, min(start + size, len(texts)))
        inputs = texts.inputs(model, rows)
        with torch.no_grad(), during(inputs):
            logits = model.every_logits(inputs)[:, :-1].float()
            some = nn.functional.cross_entropy(logits.flatten(0, 1), inputs.ids[:, 1:].flatten(), reduction="none")
        some = some.view(len(rows), -1).cpu()
        real = inputs.real()[:, 1:].bool().cpu()
        losses[rows.start : rows.stop, : some.shape[1]] = torch.where(real, some, torch.nan)
        tell(rows.stop, len(texts))
    return losses


def mean_loss(
    losses: Float[Tensor, "window pos"], where: Bool[Tensor, "window pos"] | None = None, seed: int = 0
) -> Estimate:
    """Mean over tokens that are not NaN (and at which `where` is true), resampled by windows.

    Raises `InputError` where there are none.
    """
    counted = ~losses.isnan() if where is None else ~losses.isnan() & where
    if not counted.any():
        raise InputError("There is no token to take the loss of.")
    columns = torch.stack([losses.nan_to_num().mul(counted).sum(1), counted.sum(1)], 1)
    return bootstrap(columns, lambda means: means[:, 0] / means[:, 1], UNIT, seed=seed)


@dataclass(frozen=True, eq=False)
class OffEffect(Shown):
    """What switching neurons off does to the loss, beside as many random neurons of the same layers."""

    neurons: tuple[str, ...]
    """The neurons."""
    after: Estimate
    """Change of the loss after the tokens that were asked for, nats a token; positive: the neurons help."""
    elsewhere: Estimate | None
    """The same after all other tokens; None where none were asked for."""
    random_after: Estimate
    """Change after those tokens with random neurons off, mean of the draws."""
    random_elsewhere: Estimate | None
    """The same after all other tokens."""
    draws: tuple[float, ...]
    """Change after those tokens, one number a draw of random neurons."""

    def __repr__(self) -> str:
        return f"OffEffect({len(self.neurons)} neurons off: {self.after}, random ones: {self.random_after})"


@method
def off_effect(
    setting: Setting,
    neurons: Sequence[str],
    texts: str | Sequence[str] | Windows,
    *,
    after: Sequence[int] | None = None,
    draws: int = 3,
    length: int = LENGTH,
    tokens: int | None = None,
) -> OffEffect:
    """How the loss on `texts` changes when `neurons` write nothing, after the tokens `after` (None: after all).

    Beside it the same with as many random other neurons of the same layers, `draws` times. Intervals are over windows,
    paired with the model's own loss. So a token's detectors are seen to matter: the loss of what follows the token
    rises, and more so than elsewhere and than with random neurons off.

    >>> model = cm.load("known-induction")
    >>> texts = cm.neurons.packed([[0, 1, 2, 3, 1, 2], [0, 4, 5, 6, 4, 5]])
    >>> effect = cm.neurons.off_effect(model, ["m0.n0"], texts, draws=1)
    >>> len(effect.draws), effect.elsewhere is None
    (1, True)

    Raises `InputError` for what is no neuron, for draws < 1, and where the tokens do not stand in the texts.
    """
    if draws < 1:
        raise InputError(f"draws is the number of random sets of neurons and must be at least 1, got {draws}.")
    model = setting.model
    cut = (
        texts if isinstance(texts, Windows) else windows(model, texts, length=length, tokens=tokens, seed=setting.seed)
    )
    sets = [list(neurons), *(random_neurons(model, neurons, setting.seed + draw) for draw in range(draws))]
    own = token_losses(setting, cut, "loss of the model")
    changes = [held_losses(setting, cut, control(model, off=some), f"set {i} off") - own for i, some in enumerate(sets)]
    where = None if after is None else torch.isin(cut.ids[:, :-1].long(), torch.tensor(list(after)))
    random = torch.stack(changes[1:]).mean(0)
    other = None if where is None else ~where
    return OffEffect(
        tuple(neurons),
        mean_loss(changes[0], where),
        None if other is None else mean_loss(changes[0], other),
        mean_loss(random, where),
        None if other is None else mean_loss(random, other),
        tuple(mean_loss(change, where).value for change in changes[1:]),
    )


def held_losses(
    setting: Setting, cut: Windows, holding: AbstractContextManager[None] | None, what: str
) -> Float[Tensor, "window next"]:
    """Losses inside of a context."""
    with holding or nullcontext():
        return token_losses(setting, cut, what)
