"""The commands `edit`, `prune` and `merge`: from the command line to the checkpoint and the page."""

import pytest
import torch
from command import run
from shown import blocks_of, check_shown, lede_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitome.runs.store import load_run

WORDS = "a b c d e f g h i j k l m n o p"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Text of the small model's words."""
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    generator = torch.Generator().manual_seed(0)
    path.write_text(" ".join(WORDS.split()[int(i)] for i in torch.randint(16, (400,), generator=generator)))
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory, folder, data):
    """A run of find on the small model."""
    from circuitome.studies.catalog import STUDIES
    from circuitome.studies.frame import perform

    study = STUDIES["find"]
    asked = study.settings(task="letters", model=str(folder), data=str(data), method="eap", edges=60)
    return perform(study, asked, out=tmp_path_factory.mktemp("runs") / "find")[1]


def words(path, *more):
    return ("--texts", path, "--text-tokens", 150, "--draws", 1, *more)


@pytest.mark.slow
def test_prune_makes_a_smaller_checkpoint(capsys, tmp_path, folder, text, found):
    given = ("prune", "--model", folder, *words(text), "--share", 0.5, "--checkpoint", tmp_path / "small")
    given += ("--by", "circuit", "--run", found, "--beside", "importance,random", "--circuits", "--heal", 2)
    code, _, error = run(capsys, *given, "--out", tmp_path / "run")
    assert code == 0, error
    results = load_run(tmp_path / "run").manifest["results"]
    assert list(results["models"]) == ["the model itself", "circuit", "and trained", "importance", "random 1"]
    assert results["parameters"][1] < results["parameters"][0] and results["bytes"] > 0
    assert set(results["left_out"]) >= {"induction", "capitals"} and "letters" in results["models"]["circuit"]["kept"]
    assert 0 <= results["circuits"]["distance"] <= 1
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert saved.config.num_key_value_heads == 1 and saved.config.intermediate_size == 20
    assert len(AutoTokenizer.from_pretrained(tmp_path / "small")) == 17
    assert "Without 2 of 4 heads of each block and 20 of 40 neurons" in lede_of(tmp_path / "run")
    assert len(blocks_of(tmp_path / "run")["Side by side"].rows) == 5
    check_shown(tmp_path / "run")


@pytest.mark.slow
def test_all_heads_can_go_and_blocks_too(capsys, tmp_path, folder, text):
    for options, said in ((("--heads", "--share", 1), "4 of 4 heads"), (("--blocks", "--share", 0.4), "1 of 3 blocks")):
        out = tmp_path / said[0]
        code, _, error = run(capsys, "prune", "--model", folder, *words(text), *options, "--out", out)
        assert code == 0 and said in lede_of(out), error


@pytest.mark.slow
def test_edit_unlearns_a_task_or_takes_named_parts(capsys, tmp_path, folder, data, text, found):
    given = ("--model", folder, "--data", data, *words(text), "--left", 0.2, "--relearn")
    out, saved = tmp_path / "run", tmp_path / "unlearnt"
    code, _, error = run(capsys, "edit", "letters", *given, "--checkpoint", saved, "--out", out)
    assert code == 0, error
    results = load_run(out).manifest["results"]
    assert results["reached"] and results["left_by_round"][-1] <= 0.2
    assert set(results["relearning"]) == {"edited", "fine-tuned away"}
    assert results["models"]["edited"]["kept"]["letters"]["value"] <= 0.2 + 1e-3  # no prompts are held out of a file
    assert AutoModelForCausalLM.from_pretrained(saved).config.model_type == "llama"
    check_shown(out)
    code, _, error = run(capsys, "edit", found, "--model", folder, *words(text), "--out", tmp_path / "of-run")
    assert code == 0, error
    nodes = set(load_run(found).manifest["results"]) and load_run(tmp_path / "of-run").manifest["results"]["parts"]
    assert nodes and load_run(tmp_path / "of-run").manifest["results"]["behaviour"] == "letters"
    named = ("--heads", "a0.h1", "--neurons", "m1.n3,m2.n4")
    code, _, error = run(capsys, "edit", "letters", *given[:4], *words(text), *named, "--out", tmp_path / "named")
    assert code == 0, error
    assert load_run(tmp_path / "named").manifest["results"]["parts"] == ["a0.h1", "m1.n3", "m2.n4"]
    assert "Without 3 parts" in lede_of(tmp_path / "named")
    check_shown(tmp_path / "named")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, folder):
    """Two models made from the small one."""
    folders = []
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            for parameter in hf.parameters():
                parameter += 0.02 * torch.randn_like(parameter)
        folders.append(tmp_path_factory.mktemp("tuned") / name)
        hf.save_pretrained(folders[-1])
        AutoTokenizer.from_pretrained(folder).save_pretrained(folders[-1])
    return folders


@pytest.mark.slow
def test_merge_measures_all_models(capsys, tmp_path, folder, text, found, tuned):
    given = ("merge", folder, *tuned, *words(text), "--method", "ties", "--only-circuit", found)
    code, _, error = run(capsys, *given, "--checkpoint", tmp_path / "merged", "--out", tmp_path / "run")
    assert code == 0, error
    rows = load_run(tmp_path / "run").manifest["results"]["models"]
    assert list(rows) == ["base", "one", "two", "merged", "circuits' parts", "random parts 1"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").config.model_type == "llama"
    assert "Merged by ties" in lede_of(tmp_path / "run")
    check_shown(tmp_path / "run")


BAD = [
    (("prune", "--share", 1.5), "--share is from 0 to 1"),
    (("prune", "--by", "circut"), "Did you mean 'circuit'"),
    (("prune", "--tasks", "iao"), "There is no task 'iao'"),
    (("prune", "--rounds", 0), "--rounds must be at least 1"),
    (("prune", "--checkpoint", "."), "exists already"),
    (("edit", "ioi", "--kinds", "mlps"), "no kind of parts 'mlps'"),
    (("edit", "ioi", "--left", 1), "--left is a share"),
    (("edit", "ioi", "--feature", "d"), "--feature is DICT:NUMBER"),
    (("edit", "nothing"), "There is no task 'nothing'"),
    (("merge", "a", "b", "c", "--method", "tie"), "Did you mean 'ties'"),
    (("merge", "a", "b", "c", "--only-circuit", "x,y,z"), "takes one run or 2, got 3"),
    (("merge", "base", "b", "c", "--density", 0), "density is above 0"),
    (("prune", "--model", "known-ioi"), "no architecture of transformers"),
]


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_input(capsys, tmp_path, given, message):
    code, printed, error = run(capsys, *given, "--out", tmp_path / "run")
    assert (code, printed) == (1, "") and message in " ".join(error.split())
    assert list(tmp_path.iterdir()) == []
