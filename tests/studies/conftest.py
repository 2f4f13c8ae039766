"""A small saved model and prompts that it happens to do."""

import json

import pytest
import torch
from letters import WORDS, save_letters


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A random Llama of 190 edges with a word-level tokenizer."""
    path = tmp_path_factory.mktemp("model")
    save_letters(path)
    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory, folder):
    """Pairs that the random model happens to do: the answers are what it prefers."""
    from circuitome.models.loading import load

    model = load(folder)
    rows = []
    for i in range(6):
        clean = " ".join(WORDS[(i + k) % 16] for k in range(5))
        corrupted = " ".join(WORDS[(i + k + 7 * (k == 2)) % 16] for k in range(5))
        with torch.no_grad():
            a, b = (model.hf(torch.tensor([model.encode(text)])).logits[0, -1, 3:19] for text in (clean, corrupted))
        order = (a - b).argsort()
        rows.append({"clean": clean, "corrupted": corrupted, "answer": WORDS[order[-1]], "wrong": WORDS[order[0]]})
    path = tmp_path_factory.mktemp("data") / "letters.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def stop(monkeypatch):
    """Makes the command line stop, as by Ctrl-C, when a phase is as far as `when(what, done, total)` says."""
    from contextlib import contextmanager

    from circuitome.progress import WHOLE

    def arrange(when):
        @contextmanager
        def stopping():
            def tell(what, done, total):
                if what != WHOLE and when(what, done, total):
                    raise KeyboardInterrupt

            yield tell

        monkeypatch.setattr("circuitome.cli.studies.watched", stopping)

    yield arrange
    monkeypatch.undo()
