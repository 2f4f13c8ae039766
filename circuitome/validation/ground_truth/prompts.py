"""Clean and corrupted inputs of the models with known circuits, one pair for every output."""

from collections.abc import Callable, Iterator, Sequence
from random import Random

from circuitome.errors import InputError
from circuitome.models.known import BOS, KNOWN, known_config
from circuitome.tasks.task import Pair, Task
from circuitome.validation.ground_truth.programs import PROGRAMS, Output, Program

ENTITIES = 40
"""Things that known-equality knows: e00 to e39."""
NAMES: tuple[str, ...] = tuple(KNOWN)
"""Every model with a known circuit."""


def task(name: str, n: int | None = 64, seed: int = 0) -> Task:
    """Pairs for the known model `name`: `n` clean inputs, each with another input of the same length as corrupted.

    Every position with an output becomes a pair of its own, read there, so there are more than `n` pairs. Inputs of
    compiled programs are drawn without replacement and are all there are where `n` is larger or None.

    - Compiled programs: `answers` is the token that the program puts out, `wrongs` what it puts out on the corrupted
      input where that is another. A program that gives a number has one logit, the number; its id 0 is the answer, so
      that the metric is the number itself; use the loss "l2".
    - known-induction: a random sequence of different letters, twice; read all over the second half. Corrupted: another
      such sequence.
    - known-ioi: "Ann and Bob met then Bob gave to". Corrupted: three other names, each said once.
    - known-equality, known-boolean, known-addition: "e03 e03 e17 e05 ?", "T F T ?", "4 7 + 2 5 =". Corrupted: another
      prompt with another answer.

    Raises `UnknownNameError` for another name; `InputError` for n < 1, and for n None where inputs cannot be listed.

    >>> cm.ground_truth.task("known-ioi", 16).pairs[0].clean_text
    'Gus and Hal met then Hal gave to'
    """
    vocabulary = known_config(name).vocabulary
    assert vocabulary is not None
    if n is not None and n < 1:
        raise InputError(f"A task needs at least one input; n is {n}.")
    rng, ids = Random(seed), {token: i for i, token in enumerate(vocabulary)}
    if name in PROGRAMS:
        pairs = [
            pair for drawn in _program_inputs(PROGRAMS[name], n, rng) for pair in _program_pairs(name, *drawn, ids)
        ]
    elif n is None:
        raise InputError(f"{name} has too many inputs to list them all; give n.")
    else:
        pairs = [pair for index in range(n) for pair in _DRAWN[name](index, rng, ids)]
    return Task(name, tuple(pairs), "logit_diff", seed, f"generator {name}")


def _program_inputs(program: Program, n: int | None, rng: Random) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Clean inputs, and another of the same length for each."""
    every = program.inputs()
    chosen = every if n is None or n >= len(every) else rng.sample(every, n)
    drawn: list[tuple[Sequence[str], Sequence[str]]] = []
    for clean in chosen:
        others = [row for row in every if len(row) == len(clean) and row != clean]
        drawn.append((clean, rng.choice(others)))
    return drawn


def _program_pairs(name: str, clean: Sequence[str], corrupted: Sequence[str], ids: dict[str, int]) -> Iterator[Pair]:
    meaning = PROGRAMS[name].meaning
    for position, (right, other) in enumerate(zip(meaning(clean), meaning(corrupted), strict=True), start=1):
        if right is not None:
            wrongs = _answer(other, ids) if other != right and isinstance(right, str) else ()
            yield _pair(clean, corrupted, ids, position, _answer(right, ids), wrongs)


def _answer(output: Output, ids: dict[str, int]) -> tuple[int, ...]:
    if output is None:
        return ()
    return (ids[output],) if isinstance(output, str) else (0,)


def _pair(
    clean: Sequence[str],
    corrupted: Sequence[str],
    ids: dict[str, int],
    read: int,
    answers: tuple[int, ...],
    wrongs: tuple[int, ...],
    template: str = "",
    roles: dict[str, int] | None = None,
) -> Pair:
    spelled = [tuple(ids[token] for token in (BOS, *tokens)) for tokens in (clean, corrupted)]
    texts = [" ".join(tokens) for tokens in (clean, corrupted)]
    return Pair(
        spelled[0], spelled[1], answers, wrongs, texts[0], texts[1], template, {**(roles or {}), "end": read}, read
    )


def _induction_pairs(index: int, rng: Random, ids: dict[str, int]) -> Iterator[Pair]:
    letters = [token for token in ids if token != BOS]
    length = 4 + index % 4
    clean, corrupted = rng.sample(letters, length), rng.sample(letters, length)
    for i in range(length):
        after = (i + 1) % length
        answer, wrong = ids[clean[after]], ids[corrupted[after]]
        wrongs = () if wrong == answer else (wrong,)
        yield _pair(clean * 2, corrupted * 2, ids, 1 + length + i, (answer,), wrongs, f"induction-{length}")


def _ioi_pairs(index: int, rng: Random, ids: dict[str, int]) -> Iterator[Pair]:
    names = [token for token in ids if token.istitle()]
    io, subject, *others = rng.sample(names, 5)
    template = ("ABBA", "BABA")[index % 2]
    first, second = (io, subject) if template == "ABBA" else (subject, io)

    def prompt(a: str, b: str, c: str) -> list[str]:
        return [a, "and", b, "met", "then", c, "gave", "to"]

    roles = {"IO": 1 if first == io else 3, "S1": 1 if first == subject else 3, "S2": 6}
    clean, corrupted = prompt(first, second, subject), prompt(*others)
    yield _pair(clean, corrupted, ids, len(clean), (ids[io],), (ids[subject],), template, roles)


Draw = Callable[[int, Random], tuple[list[str], str]]
"""Gives the words of a prompt and its answer."""


def _differing(draw: Draw, roles: dict[str, int]) -> Callable[[int, Random, dict[str, int]], Iterator[Pair]]:
    """Pairs of prompts that are drawn alike and have different answers."""

    def pairs(index: int, rng: Random, ids: dict[str, int]) -> Iterator[Pair]:
        clean, answer = draw(index, rng)
        other, wrong = draw(index + 1, rng)
        while wrong == answer:
            other, wrong = draw(rng.randrange(4), rng)
        yield _pair(clean, other, ids, len(clean), (ids[answer],), (ids[wrong],), roles=roles)

    return pairs


def _equality(index: int, rng: Random) -> tuple[list[str], str]:
    """Four things; the first two, and the last two, are the same in half of the prompts."""
    w, x, y, z = rng.sample([f"e{i:02}" for i in range(ENTITIES)], 4)
    left, right = index % 2 == 0, index // 2 % 2 == 0
    return [w, w if left else x, y, y if right else z, "?"], "same" if left == right else "different"


def _boolean(index: int, rng: Random) -> tuple[list[str], str]:
    a, b, c = (rng.random() < 0.5 for _ in range(3))
    return [*("T" if value else "F" for value in (a, b, c)), "?"], "T" if (a and b) or not c else "F"


def _addition(index: int, rng: Random) -> tuple[list[str], str]:
    """Two numbers of two digits; half of the sums of units have a carry."""
    a1, a0, b1 = (rng.randrange(10) for _ in range(3))
    b0 = rng.choice([d for d in range(10) if (a0 + d > 9) == (index % 2 == 0)] or [9])
    return [str(a1), str(a0), "+", str(b1), str(b0), "="], str((a1 + b1 + (a0 + b0 > 9)) % 10)


_DRAWN: dict[str, Callable[[int, Random, dict[str, int]], Iterator[Pair]]] = {
    "known-induction": _induction_pairs,
    "known-ioi": _ioi_pairs,
    "known-equality": _differing(_equality, {"W": 1, "X": 2, "Y": 3, "Z": 4}),
    "known-boolean": _differing(_boolean, {"a": 1, "b": 2, "c": 3}),
    "known-addition": _differing(_addition, {"a1": 1, "a0": 2, "b1": 4, "b0": 5}),
}
"""By name of a model set by hand: how its pairs are drawn."""
