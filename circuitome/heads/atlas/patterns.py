"""Scores of attention patterns on repeated random tokens: which heads look where, by position or by repetition."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.batches import tokens_within
from circuitome.engine.setting import Setting, method
from circuitome.heads.atlas.head_score import HeadScore
from circuitome.heads.atlas.relations import even, relations
from circuitome.heads.atlas.repeated import Repeated
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model

FIRST = 4
"""First query of the scores by position: before it, the first four keys are all there is."""

PATTERNS: dict[str, tuple[str, str]] = {
    "previous": ("attention to the token before", "share of attention"),
    "duplicate": ("attention to earlier copies of the same token", "share of attention"),
    "induction": (
        "attention to tokens behind earlier copies of the same token (prefix matching)",
        "share of attention",
    ),
    "self": ("attention of a token to itself", "share of attention"),
    "sink1": ("attention to the first position", "share of attention"),
    "sink4": ("attention to the first four positions", "share of attention"),
    "distance": ("mean distance from the query to where it looks", "tokens"),
    "entropy": ("entropy of the pattern", "nats"),
}
"""By name of score: what it says, and its unit. All but the last are linear in the pattern."""


@method
def pattern_scores(setting: Setting, repeated: Repeated, *, random: Sequence[int] = ()) -> dict[str, HeadScore]:
    """Scores of every head's attention A[q, k] by name in `PATTERNS`, each a mean over queries on each sequence.

    With P the period, r the earlier repeats, sums over keys and means over queries:
    previous A[q, q-1], self A[q, q], sink1 A[q, 0], sink4 sum of A[q, 0..3], distance sum of A[q, k] (q - k), entropy
    -sum of A log A, all for q >= 4; duplicate sum over r of A[q, q-rP] and induction sum over r of A[q, q-rP+1], for q
    in the second and later repeats. Positions count from what the tokenizer puts in front, so that the first position
    is BOS where there is one and the first random token else; nothing in front is a query of the repeats.
    `chance` is the score of even attention over all keys before and at the query (sliding windows are not counted).
    `random` are seeds of `random_model`, one more pass each, for `HeadScore.random`.
    A pattern is held for one layer at a time; sums in float32.
    Raises `UnsupportedModelError` for a model that shows no attention probabilities.
    Source: Olsson et al. 2022, arXiv:2209.11895 (prefix matching); Wang et al. 2022, arXiv:2211.00593 (previous and
    duplicate token); Xiao et al. 2023, arXiv:2309.17453 (sinks; the paper shows maps, the mass is ours).

    >>> model = cm.load("known-induction")
    >>> scores = cm.heads.pattern_scores(model, cm.heads.repeated_tokens(model, n=2, period=4))
    >>> scores["previous"]["a0.h0"].value, scores["induction"]["a1.h0"].value
    (1.0, 1.0)
    """
    chance = chance_levels(repeated, setting.model.causal)
    return beside_noise(setting, random, lambda setting: in_chunks(setting, repeated, _pass), PATTERNS, chance)


def beside_noise(
    setting: Setting,
    random: Sequence[int],
    measure: Callable[[Setting], Mapping[str, Float[Tensor, "n layer head"]]],
    what: Mapping[str, tuple[str, str]],
    chance: Mapping[str, float],
) -> dict[str, HeadScore]:
    """Scores of the heads of a model by name, and beside them those of its `random_model` of every seed in `random`.

    `measure` gives the samples of every score of a model by name; `what` says what each score means and its unit.
    """
    tell = setting.tell("models read, with and without noise for weights")
    samples = measure(setting)
    tell(1, 1 + len(random))
    noise: list[dict[str, Tensor]] = []
    for done, seed in enumerate(random, 2):
        scores = measure(setting.but(model=random_model(setting.model, seed)))
        noise.append({name: values.mean(0) for name, values in scores.items()})
        tell(done, 1 + len(random))
    random_scores = {name: torch.stack([scores[name] for scores in noise]) for name in samples if noise}
    return {
        name: HeadScore.of(name, *what[name], values, chance[name], random_scores.get(name))
        for name, values in samples.items()
    }


def measure(
    pattern: Float[Tensor, "batch head query key"], repeated: Repeated
) -> dict[str, Float[Tensor, "batch head"]]:
    """The scores of patterns on sequences that all have the layout of `repeated`; float32."""
    weights, queries = (t.to(pattern.device) for t in linear_weights(repeated))
    linear = pattern.float().flatten(-2) @ weights.flatten(1).T / queries
    entropy = torch.special.entr(pattern[:, :, FIRST:].float()).sum(-1).mean(-1)
    return dict(zip(PATTERNS, [*linear.unbind(-1), entropy], strict=True))


def linear_weights(repeated: Repeated) -> tuple[Float[Tensor, "score query key"], Float[Tensor, " score"]]:
    """What each linear score multiplies the pattern with, and its number of queries; in the order of `PATTERNS`."""
    place = torch.arange(repeated.length)
    enough, late = (place >= FIRST)[:, None], repeated.late[:, None]
    previous, duplicate, induction, first, itself = relations(repeated.layout)
    first_four, distance = (place < 4).expand(repeated.length, -1), place[:, None] - place
    weights = [previous * enough, duplicate * late, induction * late]
    weights += [weight * enough for weight in (itself, first, first_four, distance)]
    queries = [enough, late, late, enough, enough, enough, enough]
    return torch.stack(weights).float(), torch.stack([some.sum() for some in queries]).float()


def chance_levels(repeated: Repeated, causal: bool) -> dict[str, float]:
    """The scores of even attention over all keys that a query may see, by name."""
    return {name: float(value) for name, value in measure(even(repeated.length, causal)[None, None], repeated).items()}


def random_model(model: Model, seed: int) -> Model:
    """The same model with noise for weights: each weight matrix is drawn anew, normal, with its own mean and spread.

    Gains and biases stay. Attention is then as sharp as matrices of this size make it, but looks nowhere on purpose.
    """
    hf = model.copied("A random model beside this one").hf
    generator = torch.Generator(model.device).manual_seed(seed)
    with torch.no_grad():
        for weight in hf.parameters():
            if weight.ndim > 1:
                weight.normal_(float(weight.float().mean()), float(weight.float().std()), generator=generator)
    return Model(hf.eval(), model.tokenizer, f"random {model.name}")


def in_chunks(
    setting: Setting, repeated: Repeated, one_pass: Callable[[Model, Repeated], Mapping[str, Tensor]]
) -> dict[str, Tensor]:
    """What `one_pass` gives of the sequences by name, chunk by chunk, each chunk within the memory budget."""
    parts = [one_pass(setting.model, replace(repeated, inputs=inputs)) for inputs in chunks(setting, repeated.inputs)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _pass(model: Model, repeated: Repeated) -> dict[str, Float[Tensor, "batch layer head"]]:
    layers: list[dict[str, Tensor]] = []
    with torch.no_grad(), model.watching_attention(lambda layer, pattern: layers.append(measure(pattern, repeated))):
        model.logits(repeated.inputs)
    return {name: torch.stack([layer[name] for layer in layers], 1).cpu() for name in PATTERNS}


def chunks(setting: Setting, inputs: Inputs) -> list[Inputs]:
    """The sequences in groups that fit into the memory budget, at least one at a time."""
    size = max(1, tokens_within(setting.model, setting.max_memory, gradients=False) // inputs.ids.shape[1])
    fields = (inputs.ids, inputs.mask, inputs.positions, inputs.read)
    return [Inputs(*parts) for parts in zip(*(field.split(size) for field in fields), strict=True)]
