"""Copying: does a head raise the logits of the tokens it attends to, and would it raise any token's own logit?"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from circuitome.heads.atlas.repeated import Repeated
from circuitome.models.model import Model
from circuitome.models.placement import parameter
from circuitome.weights.extremes import among_extremes
from circuitome.weights.folding import behind, check_outputs_are_tokens, unembedding_rows

COPYING = {
    "copying": ("how far the head itself raises the logits of tokens it attends to", "logits"),
    "copying_ratio": ("raises minus cuts of attended tokens' logits, of all of them", "ratio"),
}
"""Scores of what heads write on repeated tokens: what each says, and its unit."""
TOKEN_COPYING = {
    "copy_top5": ("tokens that end among the 5 likeliest when the head copies them", "share of tokens"),
    "anticopy_top5": ("tokens that end among the 5 unlikeliest when the head copies them", "share of tokens"),
}
"""Scores of single tokens put through a head."""


class Copying:
    """What heads add to the logits of the tokens that they attend to, collected layer by layer in one pass.

    With r_q what a head adds to the stream at query q, logit_q(t) = (r_q through the final norm, its scale as in the
    pass) . W_U[t] is the head's direct effect on token t. The raise of t is logit_q(t) minus the mean of logit_q over
    the P tokens of the sequence, and w_q(t) the attention of q to all copies of t. Over the queries in later repeats

        copying       = mean over q of sum over t of w_q(t) raise_q(t), in logits
        copying_ratio = (U - C) / (U + C), U the same sum over raises above 0, C over those below; 0 where both are 0

    so the ratio is 1 for a head that raises whatever it attends to, -1 for one that lowers it. Biases are left out (no
    bias depends on what was attended to), and a soft cap on the logits, which bends them all alike. float32.
    Source: Olsson et al. 2022, arXiv:2209.11895, appendix; the ratio is theirs rescaled from [0, 1], where attention
    weighs, and logits are compared with those of the sequence's own tokens.
    """

    def __init__(self, model: Model, repeated: Repeated) -> None:
        self.model, self.repeated = model, repeated
        tokens = repeated.inputs.ids[:, repeated.front : repeated.front + repeated.period]
        rows = behind(model.final_norm, unembedding_rows(model)[tokens])
        self.directions = rows - rows.mean(1, keepdim=True)
        self.queries = repeated.late.to(model.device)
        self.layers: list[Float[Tensor, "part batch head query"]] = []

    def add(
        self, layer: int, pattern: Float[Tensor, "batch head query key"], z: Float[Tensor, "batch query head d_head"]
    ) -> None:
        """Take in one layer."""
        repeated = self.repeated
        onto = torch.einsum("hed,bpd->bhep", self.model.blocks[layer].head_weights(), self.directions)
        raised = z[:, self.queries].transpose(1, 2) @ onto
        copies = pattern[:, :, self.queries, repeated.front :].float()
        weighed = raised * copies.unflatten(-1, (repeated.repeats, repeated.period)).sum(-2)
        self.layers.append(torch.stack([weighed.clamp(min=0).sum(-1), weighed.clamp(max=0).sum(-1)]))

    def scores(self, final: Float[Tensor, "batch pos d_model"]) -> dict[str, Float[Tensor, "batch layer head"]]:
        """The scores by name in `COPYING`, after the pass; `final` is the stream in front of the final norm."""
        scale = self.model.final_norm.sigma(final)
        parts = torch.stack(self.layers, 2) / scale[:, None, None, self.queries, 0]
        up, down = parts.mean(-1)
        size = up - down
        return {
            "copying": (up + down).cpu(),
            "copying_ratio": torch.where(size > 0, (up + down) / size.clamp(min=1e-30), 0.0).cpu(),
        }


def token_copying(
    model: Model, embedded: Float[Tensor, "n d_model"], first: Float[Tensor, "n d_model"], tokens: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, "n layer head"]]:
    """1 where a token put through a head comes out among the 5 likeliest of all, else 0; by name in `TOKEN_COPYING`.

    `first` is the stream behind block 0 where the token stands, `embedded` that in front of it, which heads of layer 0
    read. It goes through the input norm of the head's block, W_V with bias, W_O without, final norm and unembedding.
    anticopy_top5 does the same with what the head writes negated, for heads that lower what they attend to. A head that
    writes nothing copies nothing. Chance is 5 / vocabulary.
    Raises `InputError` for a model whose outputs are not its input tokens.
    Source: copy score of Wang et al. 2022, arXiv:2211.00593, section 3.1; redwoodresearch/Easy-Transformer
    (there names at their places in IOI prompts).

    >>> model = cm.load("known-induction")
    >>> nothing = torch.zeros(2, model.d_model)
    >>> cm.heads.token_copying(model, nothing, nothing, torch.tensor([3, 4]))["copy_top5"].shape
    torch.Size([2, 2, 3])
    """
    check_outputs_are_tokens(model)
    embedded, first, tokens = (values.to(model.device) for values in (embedded, first, tokens))
    scores = []
    with torch.no_grad():
        for layer in range(len(model.blocks)):
            out = through_heads(model, layer, first if layer else embedded).flatten(0, 1)
            flags = among_ends(model, out.to(model.dtype), tokens.repeat_interleave(model.heads.q))
            scores.append(flags.unflatten(1, (len(tokens), model.heads.q)))
    copied, lowered = torch.stack(scores, 2).float().cpu()
    return {"copy_top5": copied, "anticopy_top5": lowered}


def among_ends(model: Model, out: Float[Tensor, "n d_model"], tokens: Int[Tensor, " n"]) -> Bool[Tensor, "2 n"]:
    """Whether each token is among the 5 likeliest after `out` alone is written, and whether it is after -`out`.

    Norm and unembedding are odd functions but for their biases: what a model gives for nothing at all is the same for
    both signs.
    """
    weight, bias = unembedding_rows(model), parameter(model.unembedding, "bias")
    with torch.no_grad():
        nothing = model.final_norm(torch.zeros_like(out[:1]))
        constant = nn.functional.linear(nothing.float(), weight.float(), None if bias is None else bias.float())[0]
        return among_extremes(model.final_norm(out) - nothing, weight, tokens, constant=constant)


def through_heads(model: Model, layer: int, stream: Float[Tensor, "n d_model"]) -> Float[Tensor, "n head d_model"]:
    """What each head would write if it attended to a place with this stream alone; without the output bias, float32."""
    block, heads = model.blocks[layer], model.heads
    values = range(heads.q + heads.kv, heads.readers)
    weights, biases = block.reader_weights(list(values)).float(), block.reader_biases()[heads.q + heads.kv :].float()
    v = torch.einsum("nd,ked->nke", block.attend_inputs(stream).float(), weights) + biases
    by_head = v[:, [model.graph.kv_head(head) for head in range(heads.q)]]
    return torch.einsum("nhe,hed->nhd", by_head, block.head_weights())
