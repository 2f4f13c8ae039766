"""Which tokens a neuron promotes and suppresses, and whether a detector suppresses the token that it detects.

What a neuron writes, seen by the unembedding with the final norm's gain, and its centring where it is a LayerNorm,
folded in: p = W_U gain centre(d_n), less its mean over the vocabulary, which a softmax does not see. The final norm's
scale is left out; it is positive and changes no sign. Source: Voita et al. 2023, arXiv:2309.04827, section 4.4.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.neurons.neuron_census import Census
from circuitome.results import Shown
from circuitome.weights.folding import behind, check_outputs_are_tokens, unembedding_rows
from circuitome.weights.pairs import token_name

CHUNK = 256
"""Neurons that are projected at a time."""


def projected(model: Model, neurons: Sequence[str]) -> Float[Tensor, "neuron vocab"]:
    """By neuron, what one unit of its activation adds to each logit, over the final norm's scale; mean 0."""
    nodes = [model.neuron(name) for name in neurons]
    weights = {layer: model.blocks[layer].neuron_weights() for layer in {node.layer for node in nodes}}
    return logits_of(model, torch.stack([weights[node.layer][node.index] for node in nodes]))


def logits_of(model: Model, directions: Float[Tensor, "direction d_model"]) -> Float[Tensor, "direction vocab"]:
    """What one unit of some directions of the stream adds to each logit, over the final norm's scale; mean 0."""
    out = directions @ behind(model.final_norm, unembedding_rows(model)).T
    return out - out.mean(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class NeuronTokens(Shown):
    """The tokens that a neuron raises and lowers most, for a positive activation."""

    neuron: str
    """The neuron."""
    promoted: tuple[tuple[str, float], ...]
    """Tokens with the largest p, and p."""
    suppressed: tuple[tuple[str, float], ...]
    """Tokens with the smallest p, and p."""


def promoted_tokens(model: Model, neuron: str, *, k: int = 10) -> NeuronTokens:
    """The `k` tokens whose logits a neuron raises most and lowers most when its activation is positive.

    A negative activation, which a gated neuron can have, does the opposite.

    >>> tokens = cm.neurons.promoted_tokens(cm.load("smollm2-135m"), "m29.n129", k=3)
    >>> len(tokens.promoted), tokens.promoted[0][1] > 0 > tokens.suppressed[0][1]
    (3, True)

    Raises `InputError` for what is no neuron and for k < 1.
    """
    if k < 1:
        raise InputError(f"k is the number of tokens and must be at least 1, got {k}.")
    values = projected(model, [neuron])[0]
    k = min(k, len(values))

    def named(sign: int) -> tuple[tuple[str, float], ...]:
        top = (sign * values).topk(k)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return tuple((token_name(model, token), sign * value) for token, value in pairs)

    return NeuronTokens(neuron, named(1), named(-1))


def promoted_ids(
    model: Model, layers: Sequence[int], k: int, tell: Callable[[int, int], None] = lambda done, total: None
) -> tuple[Int[Tensor, "layer neuron k"], Int[Tensor, "layer neuron k"]]:
    """Of all neurons of some layers, the `k` tokens that each raises most and lowers most, strongest first.

    `tell` is called with how many layers are done, and how many there are. Raises `InputError` for a model whose
    outputs are not its tokens.
    """
    check_outputs_are_tokens(model)
    vocabulary = behind(model.final_norm, unembedding_rows(model)).T
    k, ends = min(k, vocabulary.shape[1]), (list[Tensor](), list[Tensor]())
    for done, layer in enumerate(layers, 1):
        for rows in model.blocks[layer].neuron_weights().split(CHUNK):
            out = rows @ vocabulary
            for part, largest in zip(ends, (True, False), strict=True):
                part.append(out.topk(k, largest=largest).indices.cpu())
        tell(done, len(layers))
    raised, lowered = (torch.cat(part).view(len(layers), -1, k) for part in ends)
    return raised, lowered


@dataclass(frozen=True, eq=False)
class OwnTokens(Shown):
    """What detectors of single tokens write about the tokens that they detect."""

    neurons: tuple[str, ...]
    """The detectors."""
    effect: Float[Tensor, " neuron"]
    """Mean p of its tokens, in standard deviations of p, with the sign of its mean activation; negative suppresses."""
    random: Float[Tensor, " neuron"]
    """The same for as many tokens that were drawn from the texts."""

    @property
    def suppresses(self) -> Bool[Tensor, " neuron"]:
        """Whether it lowers the logits of its own tokens."""
        return self.effect < 0


def own_tokens(model: Model, census: Census, *, seed: int = 0) -> OwnTokens:
    """For every detector of single tokens: does it raise or lower the logits of the tokens that it detects?

    Voita et al. 2023 find more than 80 % that lower them; random tokens, drawn as they occur, say what chance gives.

    >>> model = cm.load("known-ioi")
    >>> found = cm.neurons.census(model, "Ann and Bob met then Bob gave to", length=8)
    >>> cm.neurons.own_tokens(model, found).neurons
    ()

    Raises `InputError` for a model whose outputs are not its tokens.
    """
    check_outputs_are_tokens(model)
    names = census.names(census.detector == 1)
    generator = torch.Generator().manual_seed(seed)
    effects, chance = list[float](), list[float]()
    for start in range(0, len(names), CHUNK):
        some = names[start : start + CHUNK]
        for name, values in zip(some, projected(model, some), strict=True):
            sign = 1.0 if float(census.mean_active[census.at(name)]) >= 0 else -1.0
            tokens = torch.tensor([gram[0] for gram in census.detected(name)])
            drawn = census.occurrences.double().multinomial(len(tokens), generator=generator)
            own, other = (_effect(values, ids, sign) for ids in (tokens, drawn))
            effects.append(own)
            chance.append(other)
    return OwnTokens(tuple(names), torch.tensor(effects), torch.tensor(chance))


def _effect(values: Float[Tensor, " vocab"], tokens: Int[Tensor, " token"], sign: float) -> float:
    """Mean of some entries in standard deviations of all."""
    return float(sign * values[tokens.to(values.device)].mean() / values.std().clamp(min=1e-12))
