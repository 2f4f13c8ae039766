"""Clean and corrupted inputs of the models with known circuits, one pair for every output."""

from collections.abc import Iterator, Sequence
from random import Random

from circuitome.errors import InputError
from circuitome.models.known import BOS, KNOWN, known_config
from circuitome.tasks.task import Pair, Task
from circuitome.validation.ground_truth.programs import PROGRAMS, Output, Program

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
        draw = _induction_pairs if name == "known-induction" else _ioi_pairs
        pairs = [pair for index in range(n) for pair in draw(index, rng, ids)]
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
