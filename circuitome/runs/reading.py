"""Windows of texts of any size, read once into a file: in a random order that is fixed by the seed, and resumable.

Texts are taken in groups of `GROUP` characters, from pieces of the corpus in random order; the windows of a group come
in random order. A corpus of one group gives what `windows` gives of all its texts. What was read so far is known after
every group, so that reading goes on there; tokens lie in a file that is mapped, not read, into memory.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitome.errors import InputError, RunError
from circuitome.models.model import Model
from circuitome.neurons.text_windows import Windows, check_sizes, window_rows
from circuitome.runs.corpora import Corpus, Place, corpus

GROUP = 8_000_000
"""Characters whose windows are put into random order together."""


def read_windows(
    model: Model,
    source: str | None,
    *,
    length: int,
    tokens: int,
    seed: int = 0,
    folder: Path | None = None,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Windows:
    """Windows of `length` tokens of a source's texts, until there are `tokens`; see `corpora.corpus` for sources.

    They are written to `folder` (None: a temporary one), from which a later call goes on, or which it opens at once.
    Raises as `windows` and `corpus`, and `RunError` where the folder holds windows of other texts.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            read = read_windows(model, source, length=length, tokens=tokens, seed=seed, folder=Path(place), tell=tell)
            return Windows(read.ids.clone(), read.lengths.clone())
    check_sizes(model, length, len(model.encode("")), tokens)
    texts = corpus(source)
    state = _state(folder, [source, length, tokens, seed, [list(file) for file in texts.files]])
    while not state["done"]:
        for group, (behind, some) in enumerate(_groups(texts, seed, tuple(state["place"])), state["groups"]):
            _append(folder, state, window_rows(model, some, length, seed + group), length, tokens)
            state |= {"place": list(behind), "groups": group + 1, "done": state["tokens"] >= tokens}
            _write(folder, state)
            tell(min(tokens, state["tokens"]), tokens)
            if state["done"]:
                break
        else:
            state["done"] = True
            _write(folder, state)
    if not state["rows"]:
        raise InputError("The texts hold fewer than two tokens, so nothing can be counted. Give texts with words.")
    return _opened(folder, state["rows"], length)


def _groups(texts: Corpus, seed: int, start: Place) -> Iterator[tuple[Place, list[str]]]:
    """Texts of `GROUP` characters in the order of the corpus, and the place behind the last that was read."""
    some, size = list[tuple[Place, str]](), 0
    for place, known_as, text in texts.texts(seed, start):
        some.append((known_as, text))
        size += len(text)
        if size >= GROUP:
            yield place, [text for _, text in sorted(some)]
            some, size = [], 0
    if some:
        yield place, [text for _, text in sorted(some)]


def _state(folder: Path, key: list[object]) -> dict[str, Any]:
    """What was read so far. Raises `RunError` for a folder of other texts."""
    path = folder / "state.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        return {"key": key, "place": (0, 0), "groups": 0, "rows": 0, "tokens": 0, "done": False}
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["key"] != key:
        raise RunError(f"{folder} holds windows of other texts, or the files have changed. Remove it to start afresh.")
    return dict(state)


def _write(folder: Path, state: dict[str, Any]) -> None:
    part = folder / "state.json.part"
    part.write_text(json.dumps(state), encoding="utf-8")
    part.replace(folder / "state.json")


def _append(folder: Path, state: dict[str, Any], rows: list[Tensor], length: int, tokens: int) -> None:
    """Write windows behind those that are known, until there are `tokens`."""
    sizes = {"ids": 4 * length, "lengths": 4}
    for name, size in sizes.items():
        path = folder / name
        path.touch()
        with path.open("r+b") as file:
            file.truncate(state["rows"] * size)  # what a killed run wrote and did not know of
    with (folder / "ids").open("ab") as ids, (folder / "lengths").open("ab") as lengths:
        for row in rows:
            if state["tokens"] >= tokens:
                return
            ids.write(torch.nn.functional.pad(row, (0, length - len(row))).numpy().tobytes())
            lengths.write(torch.tensor([len(row)], dtype=torch.int32).numpy().tobytes())
            state["rows"] += 1
            state["tokens"] += len(row)


def _opened(folder: Path, rows: int, length: int) -> Windows:
    """The windows of a folder; a full one is as long as the longest."""
    lengths = torch.from_file(str(folder / "lengths"), shared=False, size=rows, dtype=torch.int32)
    ids = torch.from_file(str(folder / "ids"), shared=False, size=rows * length, dtype=torch.int32).view(rows, length)
    return Windows(ids[:, : int(lengths.max())], lengths)
