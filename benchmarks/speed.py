"""Speed and memory as ratios to the bare Hugging Face passes that a method stands for, in one process.

The bare passes run the plain model over the whole prompts with logits at the last position only and parameter
gradients off. Everything alternates, so that a machine whose speed drifts slows both sides.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

import circuitome as cm

HERE = Path(__file__).parent
SIZES = (100, 300, 1_000, 3_000, 10_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    task = cm.tasks.from_file(model, HERE / "ioi32.jsonl")
    result = {"date": date.today().isoformat(), "machine": machine(), **speed(model, task, options.repeats)}
    result["peak_memory_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    result |= quality(model, task)
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def speed(model: cm.Model, task: cm.Task, repeats: int) -> dict[str, object]:
    """Median seconds of each, and the ratios of medians that the project promises."""
    ids = torch.tensor([pair.clean for pair in task.pairs])
    circuit = cm.eap_ig(model, task).top(1_000)
    jobs: dict[str, Callable[[], object]] = {
        "forward": lambda: bare_forward(model, ids),
        "forward_backward": lambda: bare_forward_backward(model, task, ids),
        "eap": lambda: cm.eap(model, task),
        "eap_ig_5": lambda: cm.eap_ig(model, task, steps=5),
        "run_circuit_1000": lambda: cm.run_circuit(model, task, circuit),
    }
    seconds = medians(jobs, repeats)
    forward, both = seconds["forward"], seconds["forward_backward"]
    return {
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "eap_ratio": round(seconds["eap"] / (2 * forward + both), 3),
        "eap_ig_5_ratio": round(seconds["eap_ig_5"] / (2 * forward + 5 * both), 3),
        "run_circuit_1000_ratio": round(seconds["run_circuit_1000"] / forward, 3),
    }


def medians(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median processor seconds of each job over `repeats` rounds in which each runs once, after one to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for counted in range(repeats + 1):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            if counted:
                taken[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def one_thread() -> None:
    """From here on one thread: its processor seconds do not count what other programs take, nor threads that wait."""
    torch.set_num_threads(1)


def bare_forward(model: cm.Model, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.hf(ids.to(model.device), logits_to_keep=1, use_cache=False).logits


def bare_forward_backward(model: cm.Model, task: cm.Task, ids: torch.Tensor) -> torch.Tensor:
    with model.frozen_parameters():
        embeddings = model.hf.get_input_embeddings()(ids).detach().requires_grad_(True)
        logits = model.hf(inputs_embeds=embeddings, logits_to_keep=1, use_cache=False).logits[:, 0]
        return torch.autograd.grad(task.score(logits, range(len(task))).mean(), embeddings)[0]


def quality(model: cm.Model, task: cm.Task) -> dict[str, object]:
    """Numbers to compare with other implementations: metric means, and faithfulness by size of EAP-IG circuits."""
    curve = cm.faithfulness_curve(model, cm.eap_ig(model, task, steps=5), task, sizes=SIZES)
    own = curve.circuits[0]
    return {
        "logit_difference": {"clean": round(own.model.value, 4), "corrupted": round(own.empty.value, 4)},
        "faithfulness": {size: round(c.value, 4) for size, c in zip(SIZES, curve.circuits, strict=True)},
        "random_circuits": {size: round(r.value, 4) for size, r in zip(SIZES, curve.random, strict=True)},
    }


def machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    main()
