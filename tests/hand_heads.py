"""Small models in which every head's role is set by hand, number by number, with the tools of scripts/hand_set.py."""

import importlib.util
from pathlib import Path
from random import Random

import torch

from circuitome.models.known import tokenizer_of
from circuitome.models.model import Model
from circuitome.tasks.task import Pair, Task

_SPEC = importlib.util.spec_from_file_location("hand_set", Path(__file__).parents[1] / "scripts" / "hand_set.py")
hand_set = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(hand_set)

SHARP = hand_set.SOFT
CAST = {
    "a0.h0": "duplicate token",
    "a0.h1": "previous token",
    "a0.h2": "first token",
    "a0.h3": "self",
    "a1.h0": "inhibition",
    "a2.h0": "mover",
    "a2.h1": "negative mover",
    "a2.h2": "suppressor of the wrong answer",
    "a2.h3": "mover of the wrong answer",
    "a3.h0": "backup mover",
}
"""The roles that are set in `cast`; all other heads have weights of zero."""


def model_of(draft, name):
    return Model(draft.hf.eval(), tokenizer_of(draft.hf.config), name)


def cast():
    """Indirect object identification with every role on stage: the circuit of known-ioi, and
    - a0.h2 looks at BOS, a0.h3 at the token itself; both write what they see into `waste`;
    - a2.h2 and a2.h3 look from "to" at the name that was said again and lower or raise its logit;
    - a3.h0 looks at the answer as the mover does, unless the mover has written it into `moved`.
    """
    size, words, length = len(hand_set.NAMES), hand_set.WORDS, 12
    slices = {"again": size, "not": size, "name": size, "moved": size, "waste": len(words)}
    draft = hand_set.Draft(words, slices, layers=4, heads=4, width=2 * len(words) + 1, length=length)
    names, slots, end = draft.tokens(*hand_set.NAMES), list(range(size)), draft.picks("token", draft.tokens("to"))
    name, again, inhibit = draft.picks("token", names), draft.picks("again", slots), draft.picks("not", slots)
    places, every = draft.picks("place", list(range(length))), draft.picks("token", list(range(len(words))))
    out, moved = draft.picks("name", slots), draft.picks("moved", slots)
    wasted = draft.picks("waste", list(range(len(words))))

    draft.head(0, 0, q=torch.cat([SHARP * name, -2 * SHARP * places]), k=torch.cat([name, places]), v=name, out=again)
    draft.rest_on_bos(0, 0, SHARP)
    hand_set.previous_token(draft, 0, 1, "waste", SHARP)
    draft.head(0, 2, v=every, out=wasted)
    draft.rest_on_bos(0, 2, 2 * SHARP)
    draft.head(0, 3, q=SHARP * places, k=places, v=every, out=wasted)

    flag = again.sum(0, keepdim=True)
    draft.head(1, 0, q=SHARP * end, k=flag, v=again, out=inhibit)
    draft.rest_on_bos(1, 0, SHARP)

    to_names = SHARP * (end.expand(size, -1) - 2 * inhibit)
    draft.head(2, 0, q=to_names, k=name, v=name, out=10 * out + moved)
    draft.head(2, 1, q=to_names, k=name, v=name, out=-4 * out)
    draft.head(2, 2, q=SHARP * end, k=flag, v=name, out=-5 * out)
    draft.head(2, 3, q=SHARP * end, k=flag, v=name, out=2 * out)
    draft.head(3, 0, q=to_names - 2 * SHARP * moved, k=name, v=name, out=8 * out)
    for layer, head in ((2, 0), (2, 1), (2, 2), (2, 3), (3, 0)):
        draft.rest_on_bos(layer, head, SHARP)
    draft.hf.lm_head.weight.detach()[names] = out
    return model_of(draft, "cast")


def capitals():
    """A head that looks from the end at a token and writes another one: its answers are in no prompt.

    Eight places, each with a capital; a0.h0 maps one to the other, a0.h1 does so against the capital with less weight.
    """
    places, answers = [f"p{i}" for i in range(8)], [f"c{i}" for i in range(8)]
    words = [hand_set.BOS, *places, *answers, "of", "is"]
    draft = hand_set.Draft(words, {"answer": 8}, layers=1, heads=3, width=len(words), length=6)
    slots, end = list(range(8)), draft.picks("token", draft.tokens("is"))
    place, answer = draft.picks("token", draft.tokens(*places)), draft.picks("answer", slots)
    for head, weight in ((0, 5.0), (1, -2.0)):
        draft.head(0, head, q=SHARP * end, k=place.sum(0, keepdim=True), v=place, out=weight * answer)
        draft.rest_on_bos(0, head, SHARP)
    draft.hf.lm_head.weight.detach()[draft.tokens(*answers)] = answer
    model, pairs = model_of(draft, "capitals"), []
    for i in range(8):
        a, b = draft.tokens(f"p{i}", f"p{(i + 3) % 8}")
        right, wrong = draft.tokens(f"c{i}", f"c{(i + 3) % 8}")
        of, last = draft.tokens("of", "is")
        pairs.append(Pair((0, of, a, last), (0, of, b, last), (right,), (wrong,), roles={"place": 2, "end": 3}))
    return model, Task("capitals", tuple(pairs))


def ioi_like(n, seed):
    """Random tokens with the roles of indirect object identification: nothing to know, so nothing to find."""
    rng, pairs = Random(seed), []
    for i in range(n):
        a, b, c, *rest = rng.sample(range(3, 61), 9)
        first, second = (a, b) if i % 2 else (b, a)
        clean = [rest[0], first, rest[1], second, rest[2], rest[3], b, rest[4], rest[5]]
        corrupted = [*clean[:6], c, *clean[7:]]
        io, s1 = (1, 3) if i % 2 else (3, 1)
        roles = {"IO": io, "S1": s1, "S1+1": s1 + 1, "S2": 6, "end": 8}
        pairs.append(Pair(tuple(clean), tuple(corrupted), (a,), (b,), template=str(i % 2), roles=roles))
    return Task("ioi-like", tuple(pairs))
