"""Texts at size: every format gives the same texts, the seed fixes their order, and reading goes on where it was."""

import json
from functools import partial
from random import Random

import pytest
import torch

import circuitome as cm
from circuitome.errors import CircuitomeError, DataFileError, InputError, RunError
from circuitome.runs import corpora, reading
from circuitome.runs.reading import read_windows
from circuitome.runs.texts import documents

WORDS = ("Ann", "Bob", "met", "then", "gave", "to", "and")


@pytest.fixture(scope="module")
def texts():
    draw = Random(0)
    return [" ".join(draw.choice(WORDS) for _ in range(draw.randint(2, 9))) for _ in range(60)]


@pytest.fixture(scope="module")
def files(tmp_path_factory, texts):
    """The same texts in every format."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    zstandard = pytest.importorskip("zstandard")
    place = tmp_path_factory.mktemp("corpora")
    lines = [json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)]
    (place / "all.jsonl").write_text("".join(lines))
    frames = [zstandard.compress("".join(part).encode()) for part in (lines[:20], lines[20:])]
    (place / "all.jsonl.zst").write_bytes(b"".join(frames))
    (place / "all.csv").write_text("id,text\n" + "".join(f"{i},{text}\n" for i, text in enumerate(texts)))
    table = pyarrow.table({"id": range(60), "text": texts})
    parquet.write_table(table, place / "all.parquet", row_group_size=7)
    (place / "parts").mkdir()
    for i in range(0, 60, 25):
        (place / "parts" / f"{i:02d}.jsonl").write_text("".join(lines[i : i + 25]))
    return place


SOURCES = ("all.jsonl", "all.jsonl.zst", "all.csv", "all.parquet", "parts", "all.jsonl#text")
DATA_SETS = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("hf:saved", "hf:parts"))


def named(files, source):
    if source == "hf:saved" and not (files / "saved").exists():
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        rows = [json.loads(line) for line in (files / "all.jsonl").read_text().splitlines()]
        datasets.Dataset.from_list(rows).save_to_disk(str(files / "saved"))
    return f"hf:{files / source[3:]}" if source.startswith("hf:") else str(files / source)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch):
    monkeypatch.setattr(corpora, "STRETCH", 300)
    monkeypatch.setattr(corpora, "ROWS", 9)
    monkeypatch.setattr(corpora, "CHUNK", 50)


@pytest.mark.parametrize("source", SOURCES + DATA_SETS)
def test_every_format_gives_the_same_texts(source, files, texts):
    source = named(files, source)
    assert documents(source) == texts
    corpus = corpora.corpus(source)
    orders = [[text for *_, text in corpus.texts(seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] and sorted(orders[0]) == sorted(texts)
    if len(corpus.pieces) > 1:
        assert orders[0] != orders[2] and orders[0] != texts
    for place, *_ in list(corpus.texts(3))[::13]:
        rest = [text for *_, text in corpus.texts(3, place)]
        assert rest == [text for *_, text in corpus.texts(3)][-len(rest) :] if rest else True


def test_a_small_corpus_is_read_as_all_its_texts_in_one(files, texts):
    model = cm.load("known-ioi")
    whole = cm.neurons.windows(model, texts, length=6, tokens=200, seed=4)
    for source in ("all.jsonl", "all.parquet", "parts"):
        read = read_windows(model, str(files / source), length=6, tokens=200, seed=4)
        assert torch.equal(read.ids, whole.ids) and torch.equal(read.lengths, whole.lengths)
        assert read.data_hash() == whole.data_hash()


class Killed(BaseException):
    """What no handler catches."""


@pytest.mark.parametrize("source", ["all.jsonl", "all.jsonl.zst", "all.parquet", "parts", *DATA_SETS])
def test_reading_that_is_killed_goes_on_to_the_same_windows(source, files, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "GROUP", 150)
    model, options = cm.load("known-ioi"), {"length": 5, "tokens": 240, "seed": 2}
    whole = read_windows(model, named(files, source), **options)
    assert not torch.equal(whole.ids, read_windows(model, named(files, source), **{**options, "seed": 3}).ids)
    draw, encode = Random(source), model.encode_answer
    for _ in range(3):
        left = draw.randint(3, 14)

        def encoded(text):
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            return encode(text)

        monkeypatch.setattr(model, "encode_answer", encoded)
        with pytest.raises(Killed):
            read_windows(model, named(files, source), folder=tmp_path, **options)
        if (tmp_path / "state.json").exists():
            with (tmp_path / "ids").open("ab") as file:
                file.write(b"half a window")
    monkeypatch.setattr(model, "encode_answer", encode)
    again = read_windows(model, named(files, source), folder=tmp_path, **options)
    assert torch.equal(again.ids, whole.ids) and torch.equal(again.lengths, whole.lengths)
    monkeypatch.setattr(model, "encode_answer", None)  # all is there: nothing is read
    assert torch.equal(read_windows(model, named(files, source), folder=tmp_path, **options).ids, whole.ids)
    with pytest.raises(RunError, match="windows of other texts"):
        read_windows(model, named(files, source), folder=tmp_path, **{**options, "seed": 5})


def test_what_was_read_is_not_read_again(files, monkeypatch):
    corpus = corpora.corpus(str(files / "all.jsonl"))
    places = [place for place, *_ in corpus.texts(1)]
    read = list[int]()

    def noted(i):
        read.append(i)
        return corpus.pieces[i].rows()

    pieces = [corpora.Piece(partial(noted, i), piece.size) for i, piece in enumerate(corpus.pieces)]
    last = next(place for place in places if place[0] == len(pieces) - 1)
    assert list(corpora.Corpus(pieces).texts(1, last)) and len(read) == 1


def bad(place):
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.compress(b'{"text": "a"}\n' * 400)
    return {
        "broken.jsonl": (b'{"text": "a"}\n' * 30 + b'{"text": \n', r"broken\.jsonl, line 31: not valid JSON"),
        "list.jsonl": (b'\n{"text": "a"}\n[1]', r"list\.jsonl, line 3: expected an object"),
        "column.jsonl": (b'{"texts": "a"}', r"line 1: there is no 'text' \(or other column of texts\); found 'texts'"),
        "number.jsonl": (b'{"text": 3}', r"line 1: the column 'text' holds int, no text"),
        "coding.jsonl": (b'{"text": "\xff"}', r"line 1: not UTF-8"),
        "named.jsonl#bodyy": (b'{"body": "a", "id": "b"}', r"There is no column 'bodyy'\. Did you mean 'body'"),
        "empty.jsonl": (b"", "the file is empty"),
        "short.jsonl.zst": (packed[:-6], r"short\.jsonl\.zst: (cut off|damaged)"),
        "flipped.jsonl.zst": (b"no frame at all", r"flipped\.jsonl\.zst: damaged near byte"),
        "line.jsonl.zst": (zstandard.compress(b'{"text": "a"}\n{"text"'), r"line 2: not valid JSON"),
        "bad.parquet": (b"no Parquet", "cannot be read as Parquet"),
        "bad.csv": (b"id,words\n1,a\n", r"line 2: there is no 'text'"),
    }


@pytest.mark.parametrize("name", list(bad(None)))
def test_bad_files_say_where(name, tmp_path):
    content, message = bad(tmp_path)[name]
    (tmp_path / name.split("#")[0]).write_bytes(content)
    with pytest.raises(CircuitomeError, match=message):
        documents(str(tmp_path / name))


def test_formats_may_be_mixed_and_others_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "one"}')
    (tmp_path / "b.csv").write_text("body\ntwo\n")
    (tmp_path / "c.txt").write_text("three\nlines")
    (tmp_path / "d.md").write_text("four")
    assert documents(str(tmp_path)) == ["one", "two", "three\nlines"]
    (tmp_path / "e.parquet").write_bytes(b"")
    with pytest.raises(DataFileError, match=r"e\.parquet: the file is empty"):
        documents(str(tmp_path))


@pytest.mark.slow
def test_data_sets_that_are_not_there(files, monkeypatch):
    for name in ("hf:nobody/nothing", f"hf:{files / 'parts'}:test", f"hf:{files / 'nowhere'}"):
        with pytest.raises(DataFileError, match="The data set hf:"):
            documents(name)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(InputError, match=r"needs datasets: pip install 'circuitome\[data\]'"):
        documents("hf:some")
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(InputError, match=r"needs zstandard: pip install 'circuitome\[data\]'"):
        documents(str(files / "all.jsonl.zst"))
