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
            xs = [activations.resid_mid[layer][0]] * (1 + len(model.graph.neurons_of(layer)))
            outputs += mlp_out(model, layer, xs)
            if features := model.graph.features_behind(layer):
                outputs += features_out(model, layer, [activations.resid_post(layer)[0]] * (1 + len(features)), True)
    return outputs


def features_out(model: Model, layer: int, xs: list[torch.Tensor], stream: bool) -> list[torch.Tensor]:
    """What features of a dictionary leave, and what each of these writes, each for its own residual [pos, d_model]."""
    described, block, outs = model.described[layer, stream], model.blocks[layer], []
    dictionary, site = described.dictionary, described.dictionary.place.site
    for part, x in enumerate(xs):
        out = x if stream else block.run_mlp(x[None])[0]
        given = {"mlp": out, "transcoder": block.mlp_norm(x) if block.mlp_norm else x}.get(site, x)
        features = dictionary.encode(given)
        written = [features[:, i, None] * dictionary.W_dec[i] for i in described.which]
        outs.append(written[part - 1] if part else out - sum(written))
    return outs


def mlp_out(model: Model, layer: int, xs: list[torch.Tensor]) -> list[torch.Tensor]:
    """What an MLP without its neuron nodes, and each of these, write, each for its own residual [pos, d_model]."""
    block, nodes = model.blocks[layer], model.graph.neurons_of(layer)
    if (layer, False) in model.described:
        return features_out(model, layer, xs, False)
    if not nodes:
        return [block.run_mlp(xs[0][None])[0]]
    hidden = []
    for x in xs:
        seen = []
        handle = block.mlp_writer.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        block.run_mlp(x[None])
        handle.remove()
        hidden.append(seen[0].view(-1, seen[0].shape[-1]))
    alone = [hidden[0].clone()]
    alone[0][:, list(nodes)] = 0
    for neuron, values in zip(nodes, hidden[1:], strict=True):
        alone.append(torch.zeros_like(values))
        alone[-1][:, neuron] = values[:, neuron]
    bias = block.mlp_writer(torch.zeros_like(alone[0]))
    outs = [block.mlp_writer(alone[0]), *(block.mlp_writer(values) - bias for values in alone[1:])]
    if block.mlp_post is None:
        return outs
    root = (sum(outs).square().mean(-1, keepdim=True) + block.mlp_post.eps).sqrt()
    return [out / root * block.mlp_post.gain for out in outs]


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
    cut = 0  # the first writer that is read: behind a stream taken apart, its nodes

    def seen(column: int, count: int) -> torch.Tensor:
        mixed = [keep[u, column] * online[u] + (1 - keep[u, column]) * ablated[u] for u in range(cut, count)]
        return torch.stack(mixed).sum(0) + constant

    for layer, block in enumerate(model.blocks):
        weights, biases = block.reader_weights(), block.reader_biases()
        columns = range(graph.attention_columns(layer).start, graph.attention_columns(layer).stop)
        values = [
            block.attend_inputs(seen(column, graph.upstream_of_attention(layer))) @ weights[i].T + biases[i]
            for i, column in enumerate(columns)
        ]
        z = model.attend(layer, torch.stack(values, 1)[None], calls[layer])[0].flatten(1)
        inputs_at = range(graph.mlp_columns(layer).start, graph.mlp_columns(layer).stop)
        before = [seen(column, graph.upstream_of_mlp(layer)) for column in inputs_at] if graph.parallel else None
        online += heads_out(block, z, model.heads.q, frozen=frozen)
        if (bias := block.output_bias()) is not None:
            constant = constant + bias
        online += mlp_out(model, layer, before or [seen(c, graph.upstream_of_mlp(layer)) for c in inputs_at])
        if graph.features_behind(layer):
            stage = graph.stages[layer][1]
            xs = [seen(column, stage.upstream) for column in range(stage.columns.start, stage.columns.stop)]
            online += features_out(model, layer, xs, True)
            cut, constant = stage.rows.start, torch.zeros_like(constant)
    return model.unembed(seen(len(graph.readers) - 1, len(online))[-1:])
