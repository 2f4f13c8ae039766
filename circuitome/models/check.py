"""The check that every loaded model passes: the adapter row is tried on a short input before anybody relies on it.

Not only shapes: one head's output and one key/value head's key are changed, and just what should change must change.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from circuitome.errors import AdapterError, NumericsError
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache
from circuitome.models.inputs import Inputs
from circuitome.models.model import Call, Model

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference allowed, as a share of the largest number compared; norms are computed in float32 at best."""


def check_model(model: Model) -> None:
    """Raises `AdapterError`, which names the site that failed, unless the adapter describes `model` exactly.

    1. Logits with hooks installed are bit-equal to the plain model's. 2. Each reader's weights and norm give its
    projection. 3. Heads, MLPs and biases add up to the residual stream. 4. Changing one key changes the heads of its
    group and no other. Also raises `NumericsError` if the plain logits, or what parts write, are not finite.
    """
    ids = torch.arange(5, 11, device=model.device)[None] % model.hf.config.vocab_size
    inputs = Inputs.whole(ids)
    with torch.no_grad(), model.reserved():
        plain = model.hf(input_ids=ids, attention_mask=inputs.mask, use_cache=False).logits[:, 5]
        if not bool(torch.isfinite(plain).all()):
            raise NumericsError(
                f"{model.name} gives logits that are not finite on a plain input; its weights are damaged."
            )
        activations = model.record(inputs)
        assert activations.logits is not None and activations.final is not None
        _same_logits(model, activations.logits, model.logits(inputs), plain)
        for site, found, expected in _identities(model, activations):
            _close(model, site, found, expected)
        calls = model.attention_calls(inputs)
        for layer in (0, len(model.blocks) - 1):
            _check_groups(model, activations, layer, calls[layer])


def _same_logits(model: Model, hooked: Tensor, at_position: Tensor, plain: Tensor) -> None:
    """Hooks must not change a bit; reading one position may round differently from reading all."""
    if not torch.equal(hooked, at_position):
        raise _failed(model, "logits", "logits with hooks installed are not bit-equal to those without")
    _close(model, "logits", hooked, plain)


def _identities(model: Model, activations: ActivationCache) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Site, what the adapter computes, what the model computed.

    Each block's sum starts from the stream that the model itself had, so that rounding in bfloat16 does not pile up.
    """
    assert activations.final is not None and activations.logits is not None
    for layer, block in enumerate(model.blocks):
        attention, normed = Node("attention", layer), block.attend_inputs(activations.resid_pre[layer])
        online = torch.einsum("bpd,red->bpre", normed, block.reader_weights()) + block.reader_biases()
        yield f"{attention}.q/k/v", online, block.split(activations.projected[layer])
        if (norm := block.attention_norm) is not None:
            x = activations.resid_pre[layer]
            own = norm.gain * norm.centre(x) / norm.sigma(x) + (0.0 if norm.bias is None else norm.bias)
            yield f"{attention} norm", own, normed
        z = activations.z[layer].float().unflatten(-1, (model.heads.q, model.heads.width))
        if block.attention_post is not None:
            z = z / block.attention_post.sigma(activations.attention_out[layer])[..., None]
        stream = activations.resid_pre[layer].float() + block.join_heads(z)
        if block.sum_norms:
            stream = block.sum_norms[0](stream.to(model.dtype)).float()
        if not model.graph.parallel:
            yield str(Node("mlp", layer, input="in")), stream, activations.resid_mid[layer]
            stream = activations.resid_mid[layer].float()
        yield str(Node.mlp(layer)), block.run_mlp(activations.resid_mid[layer]), activations.mlp_out[layer]
        stream = stream + activations.mlp_out[layer].float()
        if block.sum_norms:
            stream = block.sum_norms[1](stream.to(model.dtype)).float()
        after = activations.resid_pre[layer + 1] if layer + 1 < len(model.blocks) else activations.final
        yield f"the stream after block {layer}", stream, after
    if model.masked:
        return  # its head is more than a norm and the unembedding
    yield "logits (unembedding)", model.unembed(activations.final[:, -1]), activations.logits


def _check_groups(model: Model, activations: ActivationCache, layer: int, call: Call) -> None:
    """Scale the value of the last key/value head: z must change by that factor in its query heads, nowhere else."""
    block, graph, heads = model.blocks[layer], model.graph, model.heads
    values = block.split(activations.projected[layer]).clone()
    before = model.attend(layer, values, call)
    _close(model, f"{Node('attention', layer)} (attention)", before.flatten(-2), activations.z[layer])
    values[:, :, heads.q + 2 * heads.kv - 1] *= 2
    after = model.attend(layer, values, call)
    factors = [2.0 if graph.kv_head(head) == heads.kv - 1 else 1.0 for head in range(heads.q)]
    _close(model, str(Node("kv", layer, heads.kv - 1, "v")), after, before * before.new_tensor(factors)[:, None])


def _close(model: Model, site: str, found: Tensor, expected: Tensor) -> None:
    scale = float(expected.abs().max().clamp(min=1e-6))
    worst = float((found.float() - expected.float()).abs().max())
    if not bool(expected.isfinite().all()):
        raise NumericsError(f"{model.name} gives NaN or infinity at {site} on a plain input; its weights are damaged.")
    if not worst <= TOLERANCE.get(model.dtype, 1e-4) * scale:
        raise _failed(model, site, f"it is off by {worst:.2e} where values go up to {scale:.2e}")


def _failed(model: Model, site: str, what: str) -> AdapterError:
    return AdapterError(
        f"{model.name} ({model.hf.config.model_type}) does not compute what circuitome's description of its "
        f"architecture says, at {site}: {what}. Its code may be customised, or this version of transformers may have "
        "changed it; the row is in circuitome/models/families.py."
    )
