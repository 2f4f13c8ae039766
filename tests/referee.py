"""The slow exact form of everything: one prompt at a time, every reader's input written out, gradients by autograd."""

import torch

from circuitome.models.inputs import Inputs
from circuitome.models.model import Model
from circuitome.tasks.task import Pair


def inputs_of(model: Model, ids: tuple[int, ...]) -> Inputs:
    tokens = torch.tensor([ids])
    return Inputs(tokens, torch.ones_like(tokens), torch.arange(len(ids))[None], torch.tensor([len(ids) - 1]))


def writer_outputs(model: Model, ids: tuple[int, ...]) -> list[torch.Tensor]:
    """What every writer adds to the stream [pos, d_model], heads by their share of the attention's own output."""
    with torch.no_grad():
        activations = model.record(inputs_of(model, ids))
        outputs = [activations.resid_pre[0][0]]
        for layer, block in enumerate(model.blocks):
            outputs += heads_out(block, activations.z[layer][0], model.heads.q)
            outputs.append(activations.mlp_out[layer][0])
    return outputs


def heads_out(block, z: torch.Tensor, n_heads: int, *, frozen: bool = False) -> list[torch.Tensor]:
    """Each head alone through the output projection (bias left out), then its share of the post-norm.

    `frozen`: the post-norm's divisor passes no gradient.
    """
    whole, bias = block.output(z), block.output(torch.zeros_like(z))
    outs = []
    for head in range(n_heads):
        alone = torch.zeros_like(z).unflatten(-1, (n_heads, -1))
        alone = torch.cat(
            [alone[:, :head], z.unflatten(-1, (n_heads, -1))[:, head : head + 1], alone[:, head + 1 :]], 1
        )
        outs.append(block.output(alone.flatten(1)) - bias)
    if block.attention_post is None:
        return outs
    root = (whole.square().mean(-1, keepdim=True) + block.attention_post.eps).sqrt()
    root = root.detach() if frozen else root
    return [out / root * block.attention_post.gain for out in outs]


def masked_logits(
    model: Model, pair: Pair, ablated: list[torch.Tensor], keep: torch.Tensor, *, frozen: bool = False
) -> torch.Tensor:
    """Logits [1, vocab] where v sees keep[u, v] * online(u) + (1 - keep[u, v]) * ablated(u) of every writer u.

    `frozen`: the divisor of a post-norm on heads passes no gradient.
    """
    graph = model.graph
    inputs = inputs_of(model, pair.clean)
    activations, calls = model.record(inputs), model.attention_calls(inputs)
    online = [activations.resid_pre[0][0].detach()]
    constant = torch.zeros_like(online[0])

    def seen(column: int, count: int) -> torch.Tensor:
        mixed = [keep[u, column] * online[u] + (1 - keep[u, column]) * ablated[u] for u in range(count)]
        return torch.stack(mixed).sum(0) + constant

    for layer, block in enumerate(model.blocks):
        weights, biases = block.reader_weights(), block.reader_biases()
        columns = range(graph.attention_columns(layer).start, graph.attention_columns(layer).stop)
        values = [
            block.attend_inputs(seen(column, graph.upstream_of_attention(layer))) @ weights[i].T + biases[i]
            for i, column in enumerate(columns)
        ]
        z = model.attend(layer, torch.stack(values, 1)[None], calls[layer])[0].flatten(1)
        resid_mid = seen(graph.mlp_column(layer), graph.upstream_of_mlp(layer)) if graph.parallel else None
        online += heads_out(block, z, model.heads.q, frozen=frozen)
        if (bias := block.output_bias()) is not None:
            constant = constant + bias
        if resid_mid is None:
            resid_mid = seen(graph.mlp_column(layer), graph.upstream_of_mlp(layer))
        online.append(block.run_mlp(resid_mid[None])[0])
    return model.unembed(seen(len(graph.readers) - 1, len(online))[-1:])
