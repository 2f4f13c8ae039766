"""The slow exact form of the streaming cache: token by token, every cached key rotated anew by its index."""

import torch

from circuitome.models.attention import attending
from circuitome.models.inputs import Inputs


def rotate(x, cos, sin):
    """Rotary embedding written out: pairs (i, i + half) of the first dimensions turn, the rest stays."""
    width = cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    first, second = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)


def unrotate(x, cos, sin):
    return rotate(x, cos, -sin)


def stepwise_losses(model, ids, sinks, window):
    """One token a pass; the cache holds unrotated keys, evicted before each token is fed (evict_for_space(1))."""
    size = sinks + window
    at = torch.arange(size)[None]
    calls = model.attention_calls(Inputs(torch.zeros_like(at), torch.ones_like(at), at, at.new_zeros(1)))
    tables = [kwargs.get("position_embeddings") for _, kwargs in calls]
    kept = [(None, None) for _ in model.blocks]
    losses = []
    for t in range(len(ids) - 1):
        index = min(t, size - 1)

        def attend(call, query, key, value, index=index):
            keys, values = kept[call.layer]
            table = tables[call.layer]
            if table is not None:  # the model has rotated by `index`: back, for the cache
                cos, sin = (part[:, index] for part in table)
                query, key = unrotate(query, cos, sin), unrotate(key, cos, sin)
            if keys is not None:
                if keys.shape[2] + 1 > size:
                    recent = window - 1
                    where = list(range(sinks)) + list(range(keys.shape[2] - recent, keys.shape[2]))
                    keys, values = keys[:, :, where], values[:, :, where]
                key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
            kept[call.layer] = key, value
            n = key.shape[2]
            assert n == index + 1
            if table is not None:
                query = rotate(query, table[0][:, n - 1], table[1][:, n - 1])
                key = rotate(key, table[0][:, :n], table[1][:, :n])
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
            scores = (query @ key.transpose(-1, -2)) * call.scaling
            if call.softcap is not None:
                scores = torch.tanh(scores / call.softcap) * call.softcap
            if call.window is not None:
                scores[..., : max(0, n - call.window)] = -torch.inf
            return scores.softmax(-1) @ value

        with torch.no_grad(), attending(model, attend):
            one = ids[None, t : t + 1]
            inputs = Inputs(one, torch.ones_like(one), one.new_tensor([[index]]), one.new_zeros(1))
            logits = model.every_logits(inputs)[0, 0]
        losses.append(-logits.float().log_softmax(-1)[ids[t + 1]])
    return torch.stack(losses)
