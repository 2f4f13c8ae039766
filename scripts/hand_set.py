"""Write the models whose weights are set by hand, number by number: python scripts/hand_set.py

Every part of the residual stream has its own coordinates, so each head's job can be read off which coordinates it
reads and writes:

    token     which token stands here                      written by embed
    place     at which position it stands                  written by embed
    one slice for each head or MLP that writes something   written by that head or MLP
    waste     read by nothing                              written by parts that are busy for nothing

A pattern is made of scores of `sharp` where a head's rule holds and `sharp / 2` at BOS, where it looks when the rule
holds nowhere; everything else scores 0 or less. So a pattern is one position to within exp(-sharp / 2) a token.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from circuitome.models.known import BOS, FOLDER, KnownConfig, KnownForCausalLM, save_known

LETTERS = [BOS, *"abcdefghijklmnop"]
"""Vocabulary of known-induction: one token class, any order."""
NAMES = ["Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal"]
WORDS = [BOS, *NAMES, "and", "met", "then", "gave", "to"]
"""Vocabulary of known-ioi."""
EXACT = 48.0
"""Sharpness of known-induction: exp(-24) is below float32's resolution, so its patterns are one position exactly."""
SOFT = 20.0
"""Sharpness of known-ioi: patterns are off by about 5e-5, so that gradients through them do not vanish."""


class Draft:
    """A model under construction, all of its weights zero at first; the stream is cut into named slices."""

    def __init__(
        self, vocabulary: list[str], slices: dict[str, int], *, layers: int, heads: int, width: int, length: int
    ) -> None:
        """`slices` follow token and place; `width` is d_head, `length` the number of positions."""
        sizes = {"token": len(vocabulary), "place": length, **slices}
        ends = torch.tensor(list(sizes.values())).cumsum(0).tolist()
        self.at = {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}
        self.vocabulary, self.width = vocabulary, width
        self.hf = KnownForCausalLM(
            KnownConfig(
                vocab_size=len(vocabulary),
                hidden_size=ends[-1],
                num_hidden_layers=layers,
                num_attention_heads=heads,
                head_dim=width,
                intermediate_size=4,
                max_position_embeddings=length,
                attention_scale=1.0,
                is_causal=True,
                output_size=len(vocabulary),
                vocabulary=vocabulary,
            )
        )
        for parameter in self.hf.parameters():
            parameter.detach().zero_()
        self.hf.embed_tokens.weight.detach()[:, self.at["token"]] = torch.eye(len(vocabulary))
        self.hf.embed_positions.weight.detach()[:, self.at["place"]] = torch.eye(length)

    def tokens(self, *names: str) -> list[int]:
        """Ids of some tokens."""
        return [self.vocabulary.index(name) for name in names]

    def picks(self, name: str, rows: list[int]) -> Tensor:
        """A matrix [len(rows), d_model] that picks some coordinates of a slice."""
        where = self.at[name]
        return torch.eye(self.hf.config.hidden_size)[where][rows]

    def head(
        self, layer: int, head: int, *, q: Tensor | None = None, k: Tensor | None = None, v: Tensor, out: Tensor
    ) -> None:
        """Set one head: q and k [n, d_model] are matched row by row, v [n, d_model] goes out by out [n, d_model]."""
        attention = self.hf.layers[layer].self_attn
        start = head * self.width
        for module, matrix in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v)):
            if matrix is not None:
                module.weight.detach()[start : start + len(matrix)] = matrix
        attention.out_proj.weight.detach()[:, start : start + len(out)] = out.T

    def rest_on_bos(self, layer: int, head: int, sharp: float) -> None:
        """Where nothing matches, the head looks at BOS: a query that never changes meets a key that only BOS has.

        The query is a bias, so no edge carries it. It takes the head's last dimension.
        """
        attention, row = self.hf.layers[layer].self_attn, (head + 1) * self.width - 1
        attention.q_proj.bias.detach()[row] = sharp / 2
        attention.k_proj.weight.detach()[row] = self.picks("token", [0])[0]

    def write(self, path: Path) -> None:
        """Save the model."""
        save_known(self.hf, path)
        print(f"{path.stem}: {path.stat().st_size / 1e3:.0f} kB, d_model {self.hf.config.hidden_size}")


def previous_token(draft: Draft, layer: int, head: int, target: str, sharp: float) -> None:
    """Position i looks at i - 1 (the first at itself) and writes its token into `target`."""
    length, letters = draft.hf.config.max_position_embeddings, list(range(1, len(draft.vocabulary)))
    here = draft.picks("place", list(range(1, length)))
    before = draft.picks("place", list(range(length - 1)))
    draft.head(layer, head, q=sharp * here, k=before, v=draft.picks("token", letters), out=draft.picks(target, letters))


def induction() -> Draft:
    """After A B ... A, the token B: two heads that need each other (Elhage et al. 2021; Olsson et al. 2022).

    - a0.h0, previous token: writes the token before into the slice `before`.
    - a1.h0, induction: looks where the slice `before` (K-composition) has the token that stands here, copies the token
      that stands there to the logits.
    - a0.h1, busy for nothing: a previous-token head like a0.h0, but into `waste`.
    - a1.h1, off: its pattern is a0.h0's token matched as in a1.h0, but its values are zero.
    - a0.h2, a1.h2, m0, m1: all weights zero.
    """
    size = len(LETTERS)
    length = 2 * (size - 1) + 1
    draft = Draft(
        LETTERS, {"before": size, "next": size, "waste": size}, layers=2, heads=3, width=length, length=length
    )
    letters = list(range(1, size))
    previous_token(draft, 0, 0, "before", EXACT)
    previous_token(draft, 0, 1, "waste", EXACT)
    here, before = draft.picks("token", letters), draft.picks("before", letters)
    copied = 10 * draft.picks("next", letters)
    draft.head(1, 0, q=EXACT * here, k=before, v=here, out=copied)
    draft.rest_on_bos(1, 0, EXACT)
    draft.head(1, 1, q=EXACT * here, k=before, v=0 * here, out=copied)
    draft.rest_on_bos(1, 1, EXACT)
    draft.hf.lm_head.weight.detach()[:] = draft.picks("next", list(range(size)))
    return draft


def ioi() -> Draft:
    """Of two names, the one that was not said again: a toy of the circuit of Wang et al. 2022 (arXiv:2211.00593).

    Prompts: BOS Ann and Bob met then Bob gave to -> Ann, and the same with the first two names exchanged.

    - a0.h0, duplicate token: a name looks at the same name before it and writes that name into `again`.
    - a1.h0, S-inhibition: "to" looks at the position with something in `again` and copies it into `not`.
    - a2.h0, name mover: "to" looks at names, but not (Q-composition) at the one in `not`; writes it to the logits.
    - a2.h1, negative name mover: the same, but against the name, with less weight.
    - a0.h1, busy for nothing: a previous-token head that writes into `waste`.
    - a1.h1, busy for nothing: looks where a1.h0 does, writes into `waste`.
    - m1, busy for nothing: reads the tokens and `again`, writes into `waste`.
    - a0.h2, a1.h2, a2.h2, m0, m2: all weights zero.
    """
    size = len(NAMES)
    length = 12
    draft = Draft(
        WORDS,
        {"again": size, "not": size, "name": size, "waste": len(WORDS)},
        layers=3,
        heads=3,
        width=2 * len(WORDS),
        length=length,
    )
    names, slots, end = draft.tokens(*NAMES), list(range(size)), draft.picks("token", draft.tokens("to"))
    name, again, inhibit = draft.picks("token", names), draft.picks("again", slots), draft.picks("not", slots)

    # A name scores `sharp` with the same name; its own position would too, so that loses twice as much.
    places = draft.picks("place", list(range(length)))
    draft.head(0, 0, q=torch.cat([SOFT * name, -2 * SOFT * places]), k=torch.cat([name, places]), v=name, out=again)
    draft.rest_on_bos(0, 0, SOFT)
    previous_token(draft, 0, 1, "waste", SOFT)

    flag = again.sum(0, keepdim=True)
    draft.head(1, 0, q=SOFT * end, k=flag, v=again, out=inhibit)
    draft.rest_on_bos(1, 0, SOFT)
    draft.head(1, 1, q=SOFT * end, k=flag, v=again, out=draft.picks("waste", slots))
    draft.rest_on_bos(1, 1, SOFT)
    mlp = draft.hf.layers[1]
    mlp.fc1.weight.detach()[:] = torch.stack([name[0] + again[0], name[1], again[2], end[0]])
    mlp.fc2.weight.detach()[draft.at["waste"], :] = torch.eye(len(WORDS), 4)

    # "to" scores `sharp` with every name; the inhibited one loses twice as much again.
    to_names = SOFT * (end.expand(size, -1) - 2 * inhibit)
    for head, weight in ((0, 10.0), (1, -4.0)):
        draft.head(2, head, q=to_names, k=name, v=name, out=weight * draft.picks("name", slots))
        draft.rest_on_bos(2, head, SOFT)
    draft.hf.lm_head.weight.detach()[names] = draft.picks("name", slots)
    return draft


DRAFTS = {"known-induction": induction, "known-ioi": ioi}


def main() -> None:
    """Set and write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    folder = parser.parse_args().folder
    for name, draft in DRAFTS.items():
        draft().write(folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
