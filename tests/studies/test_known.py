"""Methods on models whose circuit is known, as a study: rates, their summary, and after a stop."""

import pytest
from command import run
from shown import blocks_of, check_shown, lede_of

from circuitome.runs.store import load_run

MODELS = "tracr-frac-prevs,tracr-length"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Three methods on two small models; without a true edge under resampling, tracr-length has no rates there."""
    from circuitome.studies.frame import perform
    from circuitome.studies.known import STUDY, Known

    out = tmp_path_factory.mktemp("known") / "run"
    settings = Known(models=tuple(MODELS.split(",")), methods=("exact", "eap", "random"))
    return perform(STUDY, settings, out=out)


@pytest.mark.slow
def test_exact_patching_finds_the_true_edges(measured):
    found, _ = measured
    rows = {(row["model"], row["ablation"], row["method"]): row for row in found.manifest["results"]["rows"]}
    assert len(rows) == 12
    exact, random = (rows["tracr-frac-prevs", "corrupted", name] for name in ("exact", "random"))
    assert exact["edge AUROC"] == exact["recall"] == 1.0 and random["edge AUROC"] < 1.0
    assert exact["all_edges"] == 23 and exact["true_edges"] == 3
    truths = found.manifest["results"]["truths"]
    assert truths["tracr-frac-prevs corrupted"] == ["embed->m0.in", "m0->a1.kv0.v", "a1.h0->logits"]
    assert "ROC area: of thresholds" in found.manifest["results"]["note"]


@pytest.mark.slow
def test_the_summary_is_a_mean_over_models_and_the_page_has_every_rate(capsys, measured):
    found, out = measured
    rows, blocks = found.manifest["results"]["rows"], blocks_of(out)
    own = [row for row in rows if row["ablation"] == "zero" and row["method"] == "eap"]
    means = {row[0]: row for row in blocks["Mean over models, zero ablation"].rows}
    assert means["eap"][1] == pytest.approx(sum(row["edge AUROC"] for row in own) / 2)
    by_model = {row[0]: row[1:] for row in blocks["Edge AUROC by model, zero ablation"].rows}
    assert set(by_model) == {"frac-prevs", "length"} and by_model["length"][1] == own[1]["edge AUROC"]
    every = blocks["Every rate, corrupted ablation"]
    assert every.folded and len(every.rows) == 6
    assert all("true" in row[-1] for row in every.rows if row[0] == "tracr-length")  # why there are none
    assert "exact" in lede_of(out)
    text, page = check_shown(out)
    assert len(text.splitlines()) < 60
    assert "embed-&gt;m0.in" in page and "tracr-frac-prevs" in page
    assert run(capsys, "show", out)[1].split() == text.split()


@pytest.mark.slow
def test_a_stopped_run_goes_on_where_it_was(capsys, tmp_path, measured, stop):
    out, given = tmp_path / "run", ("known", "--models", MODELS, "--methods", "exact,eap,random")
    stop(lambda what, done, total: done == 7)
    code, _, error = run(capsys, *given, "--out", out)
    assert code == 130 and "--resume" in error
    done = []
    stop(lambda what, at, total: done.append(at))
    code, _, error = run(capsys, *given, "--out", out, "--resume")
    assert code == 0, error
    assert done == [6, 7, 8, 9, 10, 11]
    assert load_run(out).manifest["results"] == measured[0].manifest["results"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--models", "tracr-sorted"), "no known model 'tracr-sorted'. Did you mean 'tracr-sort"),
        (("--ablations", "mean"), "no ablation of a known circuit 'mean'"),
        (("--methods", "eapig"), "no method 'eapig'. Did you mean 'eap-ig'"),
    ],
)
def test_bad_names_are_refused(capsys, tmp_path, options, message):
    code, printed, error = run(capsys, "known", *options, "--out", tmp_path / "run")
    assert (code, printed) == (1, "") and message in error
    assert list(tmp_path.iterdir()) == []


def test_known_models_and_methods_are_listed(capsys):
    assert "tracr-reverse" in run(capsys, "models")[1]
    assert "edge-pruning" in run(capsys, "methods")[1]
