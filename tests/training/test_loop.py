"""The training loop: the plain form of each step, accumulation, kill and resume, checkpoints, bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import transformers as tf
from families import CONFIGS, tiny
from safetensors.torch import load_file

import circuitome as cm
from circuitome.errors import USED, InputError, MemoryBudgetError, NumericsError, RunError
from circuitome.training import loop

SCHEDULE = cm.training.Schedule(steps=12, batch=6, length=10, learning_rate=1e-2, warm_up=0.2, seed=3)
STREAM = cm.training.RepeatedStream(torch.arange(3, 61), begin=(1,))


def weights(model):
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


def assert_same(a, b):
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


@pytest.mark.parametrize("family", ["gpt2", "neox-parallel", "llama-bias", "gemma2", "phi3"])
def test_against_a_plain_loop(family):
    """Each step written out with PyTorch alone, on the rows that the stream gives."""
    model, other = tiny(family), tiny(family)
    for config in (model.hf.config, other.hf.config):
        assert not getattr(config, "hidden_dropout", 0)
    for m in (*model.hf.modules(), *other.hf.modules()):
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.0
    trained = cm.training.train(model, STREAM, SCHEDULE)
    named = list(other.hf.parameters())
    decays = [p for p in named if p.ndim > 1], [p for p in named if p.ndim < 2]
    groups = [{"params": decays[0], "weight_decay": 0.1}, {"params": decays[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    losses = []
    for step in range(SCHEDULE.steps):
        ids = STREAM.batch(step, 6, 10, 3).ids.long()
        logits = other.hf(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = SCHEDULE.rate(step)
        optimizer.step()
    torch.testing.assert_close(trained.curve()[1], losses, rtol=1e-4, atol=1e-4)
    assert min(trained.curve()[1]) < losses[0]


@pytest.mark.parametrize("family", ["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_rows_at_a_time_make_the_same_steps(family):
    """Padded rows included, whose losses are means over different numbers of tokens."""
    losses = []
    for at_once in (6, 2, 1):
        model = tiny(family)
        for m in model.hf.modules():
            if isinstance(m, torch.nn.Dropout):
                m.p = 0.0
        row = round(10.1 / USED * (model.bytes_per_token(gradients=True) + 16 * 61))
        trained = cm.training.train(model, ragged, SCHEDULE, max_memory=at_once * row)
        assert loop.rows_within(model, SCHEDULE, at_once * row) == at_once
        losses.append(trained.curve()[1])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses[0], losses[2], rtol=1e-4, atol=1e-4)


def ragged(step, generator):
    ids = torch.randint(3, 61, (6, 10), generator=generator)
    mask = (torch.arange(10) < torch.randint(2, 11, (6, 1), generator=generator)).long()
    return cm.training.Rows(ids, mask=mask)


def test_dropout_follows_the_step_and_the_mode_is_as_before():
    first, second = (cm.training.untrained(CONFIGS["gpt2"]()) for _ in range(2))
    before = torch.get_rng_state()
    a = cm.training.train(first, STREAM, SCHEDULE)
    assert torch.equal(before, torch.get_rng_state()) and not first.hf.training
    torch.rand(5)
    b = cm.training.train(second, STREAM, SCHEDULE, watch=[lambda m: {"x": torch.rand(1).item()}])
    assert a.curve()[1] == b.curve()[1]
    assert_same(weights(first), weights(second))


def test_watched_steps_and_checkpoints(tmp_path):
    model = tiny("llama")
    seen = []

    def watch(live):
        seen.append(live)
        return {"norm_of_embedding": float(live.hf.get_input_embeddings().weight.detach().norm()), "list": [1, 2]}

    trained = cm.training.train(
        model, STREAM, SCHEDULE, folder=tmp_path / "a", watch=[watch], at=(0, 3, 12), checkpoints=(0, 5, 12)
    )
    assert seen == [model] * 3 and trained.curve("norm_of_embedding")[0] == [0, 3, 12]
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert rows == trained.history and [row["step"] for row in rows] == list(range(13))
    assert rows[-1]["tokens"] == SCHEDULE.tokens == 720
    last = tf.AutoModelForCausalLM.from_pretrained(trained.checkpoint(12))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(last(ids).logits, model.hf(ids).logits)
    assert_same(
        dict(tf.AutoModelForCausalLM.from_pretrained(trained.checkpoint(0)).named_parameters()), weights(tiny("llama"))
    )
    with pytest.raises(InputError, match="after step 7"):
        trained.checkpoint(7)
    with pytest.raises(InputError, match="only list, loss, norm"):
        trained.curve("accuracy")


@pytest.mark.parametrize("stop_after", [7, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 11))])
def test_a_stopped_training_goes_on_to_the_same_bytes(stop_after, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SECONDS", 0.0)
    monkeypatch.setattr(loop, "SHARE", 0)
    whole = cm.training.train(cm.training.untrained(CONFIGS["gpt2"]()), STREAM, SCHEDULE, folder=tmp_path / "whole")

    def stop(what, done, total):
        if done == stop_after:
            raise KeyboardInterrupt

    options = {"folder": tmp_path / "stopped", "checkpoints": (4, 12)}
    with pytest.raises(KeyboardInterrupt):
        cm.training.train(cm.training.untrained(CONFIGS["gpt2"]()), STREAM, SCHEDULE, **options, progress=stop)
    with (tmp_path / "stopped" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "lo')
    again = cm.training.train(cm.training.untrained(CONFIGS["gpt2"]()), STREAM, SCHEDULE, **options)
    assert_same(weights(whole.model), weights(again.model))
    for name in ("metrics.jsonl", "state.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()
    for other in ({"seed": 4}, {"learning_rate": 2e-2}):
        schedule = cm.training.Schedule(**{**vars(SCHEDULE), **other})
        with pytest.raises(RunError, match="another training run"):
            cm.training.train(cm.training.untrained(CONFIGS["gpt2"]()), STREAM, schedule, **options)


PROGRAM = """
import sys
import torch
import transformers as tf
import circuitome as cm
from circuitome.training import loop
loop.SECONDS, loop.SHARE = 0.0, 4
config = tf.GPT2Config(vocab_size=61, n_embd=24, n_layer=3, n_head=4, n_positions=64)
stream = cm.training.MixedStream(
    [(cm.training.RepeatedStream(torch.arange(61)), 1), (cm.training.TextStream(torch.arange(5000) ** 2 % 61), 2)])
schedule = cm.training.Schedule(steps=300, batch=6, length=16)
cm.training.train(cm.training.untrained(config), stream, schedule, folder=sys.argv[1], checkpoints=(100, 300))
print("done")
"""


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL at several moments; the last start runs to the end."""
    words = [sys.executable, "-c", PROGRAM]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*words, str(tmp_path / "whole")], check=True, env=environment)
    killed = 0
    for patience in (0.0, 0.3, 0.7, 1.1):
        process = subprocess.Popen([*words, str(tmp_path / "killed")], env=environment)
        state = tmp_path / "killed" / "metrics.jsonl"
        while process.poll() is None and not state.exists():
            time.sleep(0.01)
        time.sleep(patience)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed > 1
    subprocess.run([*words, str(tmp_path / "killed")], check=True, env=environment)
    for name in (
        "metrics.jsonl",
        "state.safetensors",
        "step-00000100/model.safetensors",
        "step-00000300/model.safetensors",
    ):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    assert load_file(tmp_path / "killed" / "step-00000300" / "model.safetensors")


def test_frozen_parameters_stay_and_changes_after_a_step_are_made():
    model, at = tiny("llama"), []
    model.hf.get_input_embeddings().weight.requires_grad_(False)
    before = weights(model)

    def sparse(live, step):
        at.append(step)
        with torch.no_grad():
            live.blocks[0].mlp_writer.weight[:, :5] = 0

    cm.training.train(model, STREAM, SCHEDULE, after_step=[sparse])
    after = weights(model)
    assert at == list(range(1, 13)) and not after["model.layers.0.mlp.down_proj.weight"][:, :5].any()
    assert torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    assert not torch.equal(before["model.layers.1.mlp.down_proj.weight"], after["model.layers.1.mlp.down_proj.weight"])


def test_named_parts_of_a_loss_are_kept_and_summed():
    def objective(model, tokens):
        loss = cm.training.next_token(model, tokens)
        return {"text": loss, "size": 0.01 * model.hf.lm_head.weight.square().mean()}

    told = []
    trained = cm.training.train(tiny("llama"), STREAM, SCHEDULE, objective=objective, log=told.append)
    assert told == trained.history
    for row in trained.history[1:]:
        assert row["loss"] == pytest.approx(row["text"] + row["size"])


def test_autocast_trains_in_bfloat16_and_keeps_weights():
    model = tiny("llama")
    trained = cm.training.train(model, STREAM, cm.training.Schedule(**{**vars(SCHEDULE), "autocast": True}))
    exact = cm.training.train(tiny("llama"), STREAM, SCHEDULE)
    assert model.dtype == torch.float32
    assert trained.curve()[1] != exact.curve()[1]
    torch.testing.assert_close(trained.curve()[1], exact.curve()[1], rtol=0.05, atol=0.05)


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="is in bfloat16"):
        cm.training.train(tiny("llama", dtype=torch.bfloat16), STREAM, SCHEDULE)
    with pytest.raises(MemoryBudgetError, match="One row of 10 tokens"):
        cm.training.train(tiny("llama"), STREAM, SCHEDULE, max_memory=1000)
    with pytest.raises(NumericsError, match="Lower the learning rate"):
        cm.training.train(tiny("llama"), STREAM, cm.training.Schedule(steps=30, batch=6, length=10, learning_rate=1e30))
    frozen = tiny("llama")
    frozen.hf.requires_grad_(False)
    with pytest.raises(InputError, match="frozen"):
        cm.training.train(frozen, STREAM, SCHEDULE)
    for wrong in ({"steps": 0}, {"warm_up": 2.0}, {"learning_rate": 0.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            cm.training.Schedule(**{"steps": 3, **wrong})
