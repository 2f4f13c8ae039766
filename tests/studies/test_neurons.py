"""The studies `neurons`, `neuron` and `languages`: what they say, what they keep, and what they refuse."""

import io
import json
import sys
from random import Random

import pytest
from command import run
from shown import blocks_of, check_shown, lede_of

import circuitome as cm
from circuitome.errors import DataFileError, InputError, RunError
from circuitome.runs.parquet import write_rows
from circuitome.runs.store import load_run
from circuitome.runs.texts import by_name, documents, read_texts
from circuitome.studies import languages, neuron, neurons
from circuitome.studies.context import Context
from circuitome.studies.frame import cost, perform

WORDS = [*"abcdefghijklmnop"]
PAGES = {"en": WORDS[:8], "de": WORDS[8:]}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with texts of two languages that share no word."""
    path, draw = tmp_path_factory.mktemp("texts"), Random(0)
    for name, words in (("en", WORDS[:8]), ("de", WORDS[8:])):
        (path / f"{name}.txt").write_text(" ".join(draw.choice(words) for _ in range(900)))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, folder, texts):
    settings = neurons.Neurons(model=str(folder), texts=str(texts), length=24, tokens=1500, off=True)
    return perform(neurons.STUDY, settings, out=tmp_path_factory.mktemp("neurons") / "run")


@pytest.mark.slow
def test_the_run_says_what_the_census_found(made, folder, texts):
    manifest, place = made[0].manifest, made[1]
    results = manifest["results"]
    model = cm.load(folder)
    cut = cm.neurons.windows(model, documents(str(texts)), length=24, tokens=1500)
    census = cm.neurons.census(model, cut)
    kept = cm.neurons.Census.of(made[0].tensors, manifest["census"])
    assert repr(kept) == repr(census) and kept.rule == census.rule
    assert (kept.active == census.active).all() and (kept.grams == census.grams).all()
    assert [row["dead"] for row in results["layers"]] == census.dead.sum(1).tolist()
    assert results["tokens"] == census.tokens and results["neurons"] == 120
    assert lede_of(place).startswith(f"Of 120 neurons, {int(census.dead.sum())} were never active on")
    rows = blocks_of(place)["By layer"].rows
    assert [row[0] for row in rows] == ["m0", "m1", "m2"]
    assert all(effect["neurons"] for effect in results["off"].values())
    check_shown(place)


@pytest.mark.slow
def test_a_census_from_before_is_told(made, tmp_path):
    from shutil import copytree

    from safetensors.torch import save_file

    copytree(made[1], tmp_path / "old")
    tensors = {name: values for name, values in made[0].tensors.items() if name != "contexts"}
    save_file(tensors, tmp_path / "old" / "tensors.safetensors")
    with pytest.raises(RunError, match=r"whose census had no contexts\. Repeat it: circuitome neurons"):
        _ = cm.open(tmp_path / "old").census


@pytest.mark.slow
def test_the_index_is_counted_beforehand(folder, texts):
    settings = neurons.Neurons(model=str(folder), texts=str(texts), length=24, tokens=1500)
    passes = neurons.work(settings, Context(settings)).forward
    assert passes > 1 + 24 * 2.2 * 12 / 1500


@pytest.mark.slow
def test_one_neuron_of_the_run_and_anew(made, tmp_path, folder, capsys):
    settings = neuron.Neuron(model=str(folder), neuron="m1.n3", run=str(made[1]))
    one, place = perform(neuron.STUDY, settings, out=tmp_path / "one")
    results, census = one.manifest["results"], cm.neurons.Census.of(made[0].tensors, made[0].manifest["census"])
    assert results["active"] == int(census.active[1, 3]) and results["tokens"] == census.tokens
    examples = results["examples"]
    assert [example["value"] for example in examples] == pytest.approx(census.top[1, :10, 3].tolist(), rel=1e-4)
    around = [value for value in examples[0]["activations"] if value is not None]
    assert max(around, key=abs) == pytest.approx(examples[0]["value"], rel=1e-3)  # 16 bits
    assert [example["from"] is None for example in examples[:4]] == [False] * 3 + [True]
    check_shown(place)
    anew = ("neuron", "m1.n3", "--model", folder, "--texts", made[0].manifest["settings"]["texts"], "--tokens", 500)
    code, printed, _ = run(capsys, *anew, "--out", tmp_path / "anew", "--json")
    assert code == 0 and json.loads(printed)["results"]["tokens"] < census.tokens
    with pytest.raises(RunError, match="is a neuron run and holds no census"):
        perform(neuron.STUDY, neuron.Neuron(model=str(folder), neuron="m1.n3", run=str(place)), out=tmp_path / "no")
    with pytest.raises(InputError, match=r"no neuron 'm1\.n99'"):
        perform(neuron.STUDY, neuron.Neuron(model=str(folder), neuron="m1.n99", run=str(made[1])), out=tmp_path / "no")


@pytest.mark.slow
def test_languages_beside_random_neurons(tmp_path, folder, texts, monkeypatch):
    monkeypatch.setattr("circuitome.neurons.language_effect.identifier", lambda names: lambda text: "en")
    sizes = {"tokens": 600, "held": 200, "length": 24, "n": 2, "source": "de", "target": "en"}
    settings = languages.Languages(model=str(folder), texts=str(texts), **sizes)
    found, place = perform(languages.STUDY, settings, out=tmp_path / "run")
    results = found.manifest["results"]
    assert results["languages"] == ["de", "en"] and results["tokens"]["de"] == results["tokens"]["en"]
    assert {name: sum(rows) for name, rows in results["neurons"].items()} == {"de": 1, "en": 1}
    assert [way["share"]["value"] for way in results["control"]["ways"].values()] == [1.0] * 4
    assert len(blocks_of(place)["Neurons switched off"].rows) == 4
    check_shown(place)
    assert load_run(place).tensors["active"].shape == (2, 3, 40)


def test_texts_from_files_folders_and_the_standard_input(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("one\ntwo")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n')
    (tmp_path / "sub" / "ignored.md").write_text("five")
    assert documents(str(tmp_path)) == ["one\ntwo", "three", "four"]
    assert by_name(str(tmp_path)) == {"a": ["one\ntwo"], "sub": ["three", "four"]}
    assert documents(None)[0].startswith("There is a workshop")
    for raw, expected in ((b"six", ["six"]), (b" ", [])):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        assert documents("-") == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    with pytest.raises(DataFileError, match="not UTF-8"):
        documents("-")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "empty").mkdir()
    for path, message in (("bad.txt", "not UTF-8"), ("empty", "holds no .txt"), ("gone.txt", "cannot be read")):
        with pytest.raises(DataFileError, match=message):
            documents(str(tmp_path / path))
    with pytest.raises(DataFileError, match="is no folder"):
        by_name(str(tmp_path / "a.txt"))


@pytest.mark.slow
def test_a_census_as_parquet_and_lines(made, tmp_path, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    census = cm.open(made[1]).census
    for to in ("parquet", "jsonl"):
        assert run(capsys, "export", made[1], "--to", to, "--out", tmp_path / f"neurons.{to}")[0] == 0
    rows = parquet.read_table(tmp_path / "neurons.parquet").to_pylist()
    lines = [json.loads(line) for line in (tmp_path / "neurons.jsonl").read_text().splitlines()]
    assert len(rows) == len(lines) == census.active.numel() and lines[43] == census.row("m1.n3")
    for row, line in zip(rows, lines, strict=True):
        flat = {name: value for name, value in row.items() if not name.startswith("fires_on_")}
        assert flat == {name: value for name, value in line.items() if name != "fires_on"}
        for n in "123":
            grams = [[gram["tokens"], gram["fired"], gram["occurs"]] for gram in row[f"fires_on_{n}"]]
            assert grams == line["fires_on"][n]


def test_texts_from_parquet(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["one", "two"], "by": ["a", "b"], "n": [1, 2]})
    parquet.write_table(table, tmp_path / "good.parquet")
    assert documents(str(tmp_path / "good.parquet")) == documents(str(tmp_path)) == ["one", "two"]
    assert read_texts(tmp_path / "good.parquet", "by") == (["one", "two"], ["a", "b"])
    parquet.write_table(table.drop_columns("text"), tmp_path / "other.parquet")
    (tmp_path / "bad.parquet").write_text("no Parquet")
    for name, message in (
        ("other", r"row 1: there is no 'text' .*found 'by', 'n'"),
        ("bad", "cannot be read as Parquet"),
        ("gone", "cannot be read"),
    ):
        with pytest.raises(DataFileError, match=message):
            documents(str(tmp_path / f"{name}.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'circuitome\[parquet\]'"):
        documents(str(tmp_path / "a.parquet"))
    with pytest.raises(InputError, match=r"Writing .* needs pyarrow"):
        write_rows([{"a": 1}], tmp_path / "b.parquet")


def test_a_text_shorter_than_a_window_is_counted_without_positions(tmp_path, folder):
    (tmp_path / "short.txt").write_text("a b c a b d")
    settings = neurons.Neurons(model=str(folder), texts=str(tmp_path / "short.txt"), length=24)
    found, _ = perform(neurons.STUDY, settings, out=tmp_path / "run")
    results = found.manifest["results"]
    assert results["windows"] == 1 and results["tokens"] == 5 and results["positional"] == []
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataFileError, match="is empty"):
        perform(
            neurons.STUDY, neurons.Neurons(model=str(folder), texts=str(tmp_path / "empty.txt")), out=tmp_path / "no"
        )
    assert not (tmp_path / "no").exists()


def test_a_language_with_ten_times_less_text_is_named():
    for selection, words in (("balanced", "As many tokens were read"), ("paper", "reads all of them")):
        (note,) = languages.uneven({"given": {"en": 5000, "de": 500}, "selection": selection})
        assert (
            note.level == "warning" and note.text.startswith("de has 500 tokens and en 5,000.") and words in note.text
        )
    assert languages.uneven({"given": {"en": 4999, "de": 500}, "selection": "paper"}) == []


def test_whole_pages_are_held_out_and_the_same_in_every_language(folder):
    model, settings = cm.load(folder), languages.Languages(tokens=40, held=20, length=12)
    pages = {name: [f"{word} {word} {word} {word}" for word in words] for name, words in PAGES.items()}
    apart = {name: languages.split(settings, model, name, texts) for name, texts in pages.items()}
    numbers = {}
    for name, (some, held) in apart.items():
        read = [
            {WORDS.index(word) % 8 for word in model.decode(row).split()}
            for row in (*some.ids.tolist(), *held.ids.tolist())
        ]
        numbers[name] = set.union(*read[: len(some)]), set.union(*read[len(some) :])
        assert not numbers[name][0] & numbers[name][1]
    assert numbers["en"] == numbers["de"]
    assert languages.enough(["a" * 100, "b" * 100, "c"], 10) == ["a" * 100, "b" * 100]


def test_what_is_refused_before_any_work(tmp_path, folder, texts):
    for study, bad in (
        (neurons.STUDY, neurons.Neurons(tokens=1)),
        (neurons.STUDY, neurons.Neurons(length=1)),
        (neuron.STUDY, neuron.Neuron(neuron="a1.h0")),
        (languages.STUDY, languages.Languages()),
        (languages.STUDY, languages.Languages(texts=str(texts), source="en")),
        (languages.STUDY, languages.Languages(texts=str(texts), draws=0)),
    ):
        with pytest.raises(InputError):
            perform(study, bad, out=tmp_path / "run")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "en.txt").write_text("a b c d")
    for options, message in (
        ({"texts": str(tmp_path / "one")}, "1 language"),
        ({"texts": str(texts), "source": "en", "target": "fr"}, "no language 'fr'"),
    ):
        with pytest.raises(InputError, match=message):
            perform(languages.STUDY, languages.Languages(model=str(folder), **options), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert cost(neurons.STUDY, neurons.Neurons(model=str(folder), texts=str(texts), length=24)).seconds > 0
