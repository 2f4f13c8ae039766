"""The logit lens: what the residual stream would predict if the model ended after each of its parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.weights.folding import unembedding_rows
from circuitome.weights.pairs import token_name

CHUNK = 20_000_000
"""Logits that are held at a time."""


@dataclass(frozen=True)
class Lens:
    """Predictions read from the stream after every part of the model, at every position of one prompt."""

    tokens: tuple[str, ...]
    """The prompt, token by token."""
    stages: tuple[str, ...]
    """After what the stream was read: embed, a0 (attention of block 0), m0 (its MLP), ... The last is the model."""
    top: Int[Tensor, "stage pos k"]
    """Ids of the most probable next tokens, the most probable first."""
    names: tuple[tuple[str, ...], ...]
    """The most probable token of every stage and position as text."""
    probability: Float[Tensor, "stage pos k"]
    """Their probabilities."""
    targets: Int[Tensor, " pos"]
    """Id of the token that is followed at each position: the one asked for, or the model's own first choice."""
    target_names: tuple[str, ...]
    """The same as text."""
    target_probability: Float[Tensor, "stage pos"]
    """Its probability."""
    rank: Int[Tensor, "stage pos"]
    """Its rank, 1 for the most probable token; ties count in its favour."""
    kl: Float[Tensor, "stage pos"]
    """KL(model's prediction, prediction of the stage), nats; 0 at the last stage."""
    entropy: Float[Tensor, "stage pos"]
    """Entropy of the stage's prediction, nats."""

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        tensors = ("top", "probability", "targets", "target_probability", "rank", "kl", "entropy")
        texts = {name: getattr(self, name) for name in ("tokens", "stages", "names", "target_names")}
        return {**texts, **{name: getattr(self, name).tolist() for name in tensors}}


def logit_lens(model: Model, prompt: str | tuple[int, ...], *, target: str | int | None = None, k: int = 5) -> Lens:
    """Softmax of the unembedding of the final norm of the stream after each part, at every position.

    `prompt` is text or token ids. `target` is the token to follow, as text of one token or as id; by default the
    model's own first choice at each position. Blocks whose attention and MLP work side by side (GPT-NeoX) have no
    stream in between, so there only MLPs are stages. Logits are made some positions at a time.
    A soft cap is applied as in the model, so the last stage is the model's own prediction.

    >>> model = cm.load("known-ioi")
    >>> lens = cm.logit_lens(model, "Ann and Bob met then Bob gave to", k=1)
    >>> lens.stages[-1], lens.names[-1][-1]
    ('m2', 'Ann')

    Raises `InputError` for an empty prompt, a target that is not one token, and k below 1.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    ids = tuple(model.encode(prompt)) if isinstance(prompt, str) else tuple(prompt)
    if not ids:
        raise InputError(f"The prompt {prompt!r} has no tokens; a lens needs at least one.")
    if k < 1:
        raise InputError(f"k is the number of tokens to show and must be at least 1, got {k}.")
    wanted = _target(model, target)
    with torch.no_grad():
        activations = model.record(Inputs.whole(torch.tensor([ids], device=model.device)), logits=False)
        stages = list(stages_of(model, activations))
        outputs = len(unembedding_rows(model))
        step = max(1, CHUNK // outputs)
        chunks = [
            _read(model, [resid[0, at : at + step] for _, resid in stages], wanted, min(k, outputs))
            for at in range(0, len(ids), step)
        ]
    found = {name: torch.cat([chunk[name] for chunk in chunks], 0 if name == "targets" else 1) for name in chunks[0]}
    names = tuple(tuple(token_name(model, i) for i in row) for row in found["top"][..., 0].tolist())
    return Lens(
        tokens=tuple(token_name(model, i) for i in ids),
        stages=tuple(name for name, _ in stages),
        names=names,
        target_names=tuple(token_name(model, i) for i in found["targets"].tolist()),
        **found,
    )


def _target(model: Model, target: str | int | None) -> int | None:
    outputs = len(unembedding_rows(model))
    if isinstance(target, str):
        ids = model.encode_answer(target)
        if len(ids) != 1:
            spelled = "|".join(token_name(model, i) for i in ids)
            raise InputError(
                f"The target {target!r} must be one token, got {len(ids)}: {spelled}. Most tokenizers want the space "
                "before a word."
            )
        target = ids[0]
    if target is not None and not 0 <= target < outputs:
        raise InputError(f"{model.name} has outputs 0 to {outputs - 1}, not {target}.")
    return target


def stages_of(model: Model, activations: ActivationCache) -> Iterator[tuple[str, Float[Tensor, "1 pos d_model"]]]:
    """The residual stream behind every part, with the part's name: embed, a0, m0, ..."""
    assert activations.final is not None
    yield "embed", activations.resid_pre[0]
    for layer in range(len(model.blocks)):
        if not model.graph.parallel:
            yield str(Node("attention", layer)), activations.resid_mid[layer]
        yield (
            str(Node.mlp(layer)),
            activations.resid_pre[layer + 1] if layer + 1 < len(model.blocks) else activations.final,
        )


def _read(model: Model, stages: list[Tensor], target: int | None, k: int) -> dict[str, Tensor]:
    """All measures [stage, pos, ...] of a few positions, one stage's logits after another."""
    final = model.unembed(stages[-1]).float().log_softmax(-1)
    targets = final.argmax(-1) if target is None else torch.full(final.shape[:1], target, device=final.device)
    rows: dict[str, list[Tensor]] = {}
    for resid in stages:
        logs = final if resid is stages[-1] else model.unembed(resid).float().log_softmax(-1)
        own = logs.gather(1, targets[:, None])
        best = logs.topk(k)
        measures = {
            "top": best.indices,
            "probability": best.values.exp(),
            "target_probability": own[:, 0].exp(),
            "rank": (logs > own).sum(1) + 1,
            "kl": (final.exp() * (final - logs)).sum(1),
            "entropy": -(logs.exp() * logs).sum(1),
        }
        for name, values in measures.items():
            rows.setdefault(name, []).append(values)
    return {**{name: torch.stack(values) for name, values in rows.items()}, "targets": targets}
