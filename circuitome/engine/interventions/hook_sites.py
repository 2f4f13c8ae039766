"""A function of the user's own at any site of a model, in every pass that runs inside a `with` block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from circuitome.engine.interventions.positions import At, Positions
from circuitome.engine.interventions.sites import site as site_of
from circuitome.engine.interventions.watching import as_function, changing_site
from circuitome.models.model import Model
from circuitome.tasks.task import Task


@contextmanager
def hook(
    model: Model, site: str, fn: Callable[[Tensor], Any], *, at: At = "all", task: Task | None = None
) -> Iterator[None]:
    """Inside, every forward pass of `model.hf`, `generate` included, has `fn` at `site`.

    `fn` is given values [batch, position, width] and gives new ones of the same shape, or None to only look. With `at`,
    it is given just these positions, in the order in which they are listed; see `ablate`. Gradients flow through.

    Sites, with the width of their values:

    - `a9.h6.q`, `a9.kv2.k`, `a9.kv2.v` [d_head]: what the projections give, before any norm of q and k and before
      rotations; where each head has keys of its own, also `a9.h6.k` and `a9.h6.v`.
    - `a9.h6.pattern` [key]: attention probabilities, to look at only. Attention is computed in the open for them, and
      dropout is off.
    - `a9.h6.z` [d_head], `a9.z` [head * d_head]: what the output projection reads of a head, or of all side by side.
      All behind it reacts, the divisor of a post-norm too.
    - `a9.h6.out`, `a9.out` [d_model]: what the head, or the whole attention, adds to the stream, behind a post-norm.
      The projection's bias is part of the whole and of no head.
    - `m3.in` [d_model], `m3.hidden` [neurons], `m3.out` [d_model]: the MLP's normed input; its neurons behind
      activation and gate; what it adds to the stream, behind a post-norm.
    - `a3.resid_pre`, `a3.resid_mid`, `a3.resid_post` or `m3.resid_pre` and so on [d_model]: the residual stream in
      front of block 3, between its attention and its MLP, and behind it, for all that reads it there.
    - `embed`, `final` [d_model]: the stream in front of block 0, and in front of the final norm.

    Sites act in the order in which the model computes them; at one site the outer function acts first.
    Raises `UnknownNameError` for a site that does not exist, `InputError` for a role without task and, in the pass, for
    a position outside of a prompt and for a function that gives another shape or a dtype that cannot be used,
    `NumericsError` for one that gives NaN or infinity.

    >>> model = cm.load("known-ioi")
    >>> prompt = {"input_ids": torch.tensor([model.encode("Ann and Bob met then Bob gave to")])}
    >>> with cm.hook(model, "a1.resid_post", lambda values: 0 * values, at="end"):
    ...     logits = model.hf(**prompt).logits[0, -1].detach()
    >>> round(float(logits.max() - logits.min()), 1)
    0.0
    """
    where = site_of(model, site)
    positions = Positions.of(at, task)
    with model.locked(), positions.followed(model), changing_site(model, where, positions, as_function(where, fn)):
        yield
