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
ENTITIES = [f"e{i:02}" for i in range(40)]
"""Things that known-equality compares; each is a random vector."""
DIGITS = [str(digit) for digit in range(10)]
EXACT = 48.0
"""Sharpness of all but known-ioi: exp(-24) is below float32's resolution, so its patterns are one position exactly."""
SOFT = 20.0
"""Sharpness of known-ioi: patterns are off by about 5e-5, so that gradients through them do not vanish."""


class Draft:
    """A model under construction, all of its weights zero at first; the stream is cut into named slices."""

    def __init__(
        self,
        vocabulary: list[str],
        slices: dict[str, int],
        *,
        layers: int,
        heads: int,
        width: int,
        length: int,
        neurons: int = 4,
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
                intermediate_size=neurons,
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

    def neuron(self, layer: int, neuron: int, reads: Tensor, writes: Tensor, bias: float = 0.0) -> None:
        """Set one neuron: it is relu(reads . x + bias), and adds its value times `writes` to the stream."""
        mlp = self.hf.layers[layer]
        mlp.fc1.weight.detach()[neuron] = reads
        mlp.fc1.bias.detach()[neuron] = bias
        mlp.fc2.weight.detach()[:, neuron] = writes

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


def gather(draft: Draft, positions: dict[str, int], values: Tensor, asks: str = "?") -> None:
    """From the token `asks`, a head of block 0 looks at each of some positions and copies `values` into its slice."""
    last = draft.picks("token", draft.tokens(asks))
    for head, (name, position) in enumerate(positions.items()):
        place = draft.picks("place", [position])
        draft.head(0, head, q=EXACT * last, k=place, v=values, out=draft.picks(name, list(range(len(values)))))


def equality() -> Draft:
    """Whether the first two of four things are the same just as the last two are (Geiger et al. 2024).

    Prompts: BOS e03 e03 e17 e05 ? -> different. Things are random vectors of four numbers.

    - a0.h0 to a0.h3: "?" copies the vectors of the four things into slices.
    - m0: distance of the first two (neurons 0 to 7), of the last two (8 to 15): |w - x| by relu(w - x) + relu(x - w).
    - m1: whether the first two are the same (neuron 0), and the last two (neuron 1): relu(1 - 10 distance).
    - m2: whether one of these is true and the other is not (neurons 0 and 1).
    """
    words, size = [BOS, *ENTITIES, "?", "same", "different"], 4
    slices = {"vector": size, "W": size, "X": size, "Y": size, "Z": size}
    draft = Draft(
        words,
        {**slices, "far": 2, "equal": 2, "unlike": 1},
        layers=3,
        heads=4,
        width=size,
        length=6,
        neurons=16,
    )
    vectors = torch.randn(len(ENTITIES), size, generator=torch.Generator().manual_seed(0))
    draft.hf.embed_tokens.weight.detach()[1 : 1 + len(ENTITIES), draft.at["vector"]] = vectors
    gather(draft, {"W": 1, "X": 2, "Y": 3, "Z": 4}, draft.picks("vector", list(range(size))))
    far, equal, unlike = (draft.picks(name, list(range(n))) for name, n in (("far", 2), ("equal", 2), ("unlike", 1)))
    for side, (one, other) in enumerate((("W", "X"), ("Y", "Z"))):
        for i in range(size):
            difference = (draft.picks(one, [i]) - draft.picks(other, [i]))[0]
            for sign in (1, -1):
                draft.neuron(0, 8 * side + 2 * i + (sign < 0), sign * difference, far[side])
        draft.neuron(1, side, -10 * far[side], equal[side], bias=1.0)
        draft.neuron(2, side, (equal[side] - equal[1 - side]), unlike[0])
    answer = 10 * draft.picks("token", draft.tokens("?"))[0] - 20 * unlike[0]
    draft.hf.lm_head.weight.detach()[draft.tokens("same", "different")] = torch.stack([answer, -answer])
    return draft


def boolean() -> Draft:
    """The formula (a and b) or not c. Prompts: BOS T F T ? -> F.

    - a0.h0 to a0.h2: "?" copies whether each of the three is T.
    - m0: neuron 0 is `both`, relu(a + b - 1).
    - m1: neuron 0 is 1 where the formula is false, relu(c - both).
    """
    draft = Draft(
        [BOS, "T", "F", "?"],
        {"a": 1, "b": 1, "c": 1, "both": 1, "false": 1},
        layers=2,
        heads=3,
        width=2,
        length=6,
    )
    gather(draft, {"a": 1, "b": 2, "c": 3}, draft.picks("token", draft.tokens("T")))
    a, b, c, both, false = (draft.picks(name, [0])[0] for name in ("a", "b", "c", "both", "false"))
    draft.neuron(0, 0, a + b, both, bias=-1.0)
    draft.neuron(1, 0, c - both, false)
    answer = 10 * draft.picks("token", draft.tokens("?"))[0] - 20 * false
    draft.hf.lm_head.weight.detach()[draft.tokens("T", "F")] = torch.stack([answer, -answer])
    return draft


def addition() -> Draft:
    """The tens digit of the sum of two numbers of two digits. Prompts: BOS 4 7 + 2 5 = -> 7.

    - a0.h0 to a0.h3: "=" copies the values of the four digits.
    - m0: neurons 0 and 1 are the carry, relu(x - 9) - relu(x - 10) for the sum x of the units; neuron 2 is the sum of
      the tens.
    - m1: the digit, as bumps relu(y - d + 1) - 2 relu(y - d) + relu(y - d - 1) of the sum y of both.
    """
    draft = Draft(
        [BOS, *DIGITS, "+", "="],
        {"a1": 1, "a0": 1, "b1": 1, "b0": 1, "carry": 1, "tens": 1, "digit": 10},
        layers=2,
        heads=4,
        width=2,
        length=7,
        neurons=60,
    )
    value = (draft.picks("token", draft.tokens(*DIGITS)) * torch.arange(10.0)[:, None]).sum(0, keepdim=True)
    gather(draft, {"a1": 1, "a0": 2, "b1": 4, "b0": 5}, value, "=")
    a1, a0, b1, b0, carry, tens = (draft.picks(name, [0])[0] for name in ("a1", "a0", "b1", "b0", "carry", "tens"))
    draft.neuron(0, 0, a0 + b0, carry, bias=-9.0)
    draft.neuron(0, 1, a0 + b0, -carry, bias=-10.0)
    draft.neuron(0, 2, a1 + b1, tens)
    for total in range(20):
        for i, weight in enumerate((1.0, -2.0, 1.0)):
            draft.neuron(
                1, 3 * total + i, carry + tens, weight * draft.picks("digit", [total % 10])[0], 1.0 - i - total
            )
    draft.hf.lm_head.weight.detach()[draft.tokens(*DIGITS)] = 10 * draft.picks("digit", list(range(10)))
    return draft


DRAFTS = {
    "known-induction": induction,
    "known-ioi": ioi,
    "known-equality": equality,
    "known-boolean": boolean,
    "known-addition": addition,
}


def main() -> None:
    """Set and write."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the files go")
    folder = parser.parse_args().folder
    for name, draft in DRAFTS.items():
        draft().write(folder / f"{name}.safetensors")


if __name__ == "__main__":
    main()
