"""Everything on a CUDA machine, in one command: `python scripts/gpu_check.py`. Without such a machine it says so.

1. Results on CUDA are those on the CPU: methods on SmolLM2-135M, every example of the documentation, every command.
2. Speed as ratios to the bare passes, in float32 and bfloat16; strongest edges in bfloat16 beside those in float32.
3. A model of Llama-3-8B's shape with random weights, made on the device: time, passes and memory of the main methods.
What fails is named and the rest goes on. The dated result lies in benchmarks/results after each part.
"""

import argparse
import doctest
import importlib
import json
import os
import pkgutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import circuitome as cm
from circuitome.tasks.task import Pair

PAIRS = Path(__file__).resolve().parent.parent / "benchmarks" / "ioi32.jsonl"
"""Pairs of one length, which the bare passes need."""
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
TOLERANCE = 2e-3
"""Largest difference between the devices in float32, as a share of the largest number."""
PROMPT = "When Laura and Peter went to the store, Peter gave a drink to"
LIMIT = 60
"""Seconds that one method or command may take; more than that is told as a failure."""
Method = Callable[["cm.Model", "cm.Task"], Tensor]


def circuit_of(model: "cm.Model", task: "cm.Task") -> "cm.Circuit":
    """A circuit that does not depend on rounding."""
    edges = model.graph.mask.nonzero().tolist()[:: max(1, model.graph.n_edges // 1_000)]
    values = torch.zeros(model.graph.mask.shape)
    values[tuple(torch.tensor(edges).T)] = torch.linspace(1, 2, len(edges))
    return cm.EdgeScores(model.graph, values, method="spread").top(len(edges))


def neuron_scores(model: "cm.Model", task: "cm.Task") -> Tensor:
    """Edge scores with some neurons as nodes."""
    layer = len(model.blocks) - 1
    return cm.neurons.graph_scores(model.with_neurons([f"m{layer}.n{i}" for i in range(5)]), task, steps=2).values


def changed_logits(model: "cm.Model", task: "cm.Task") -> Tensor:
    """Logits with a head off, another scaled, and a direction added."""
    ids = torch.tensor([task.pairs[0].clean], device=model.device)
    with torch.no_grad(), cm.ablate(model, ["a1.h0"]), cm.scale(model, ["a0.h0"], 2.0):
        return model.hf(ids).logits[0, -1]


METHODS: dict[str, Method] = {
    "eap": lambda model, task: cm.eap(model, task).values,
    "eap_ig": lambda model, task: cm.eap_ig(model, task, steps=3).values,
    "eap_ig conductance": lambda model, task: cm.eap_ig(model, task, steps=3, path="conductance").values,
    "eap relp": lambda model, task: cm.eap(model, task, rules="relp").values,
    "eap gim": lambda model, task: cm.eap(model, task, rules="gim").values,
    "eap mean": lambda model, task: cm.eap(model, task, ablation="mean").values,
    "eap, activations on the CPU": lambda model, task: cm.eap(model.with_activations_on("cpu"), task).values,
    "eap_ig, activations on disk": lambda model, task: cm.eap_ig(model.with_activations_on("disk"), task).values,
    "atp": lambda model, task: torch.cat([(found := cm.atp(model, task)).writers, found.readers]),
    "patch": lambda model, task: cm.patch(model, task).samples,
    "path_patch": lambda model, task: cm.path_patch(model, task, ["logits"]).samples,
    "route_scores": lambda model, task: cm.route_scores(model, task).values,
    "run_circuit": lambda model, task: cm.run_circuit(model, task, circuit_of(model, task)),
    "run_circuit zero": lambda model, task: cm.run_circuit(model, task, circuit_of(model, task), ablation="zero"),
    "mattr": lambda model, task: cm.mattr(model, task, steps=2).values,
    "edge_pruning": lambda model, task: cm.edge_pruning(model, task, edges=300, steps=2).values,
    "direct_logit_attribution": lambda model, task: cm.direct_logit_attribution(model, task).samples,
    "logit_lens": lambda model, task: cm.logit_lens(model, PROMPT).kl,
    "neurons as nodes": neuron_scores,
    "interventions": changed_logits,
}
"""Methods whose numbers are compared between the devices."""
COMMANDS: dict[str, dict[str, Any]] = {
    "find": {"n": 16, "edges": 300},
    "patch": {"n": 16},
    "path": {"n": 16},
    "compare": {"n": 16},
    "validate": {"run": "find"},
    "explain": {"run": "find"},
    "heads": {},
    "trace": {"prompt": PROMPT},
    "graph": {"prompt": PROMPT},
    "lens": {"prompt": PROMPT},
    "see": {"prompt": PROMPT},
    "align": {"n": 32},
}
"""Commands run on SmolLM2, with their settings."""


def main() -> None:
    """Every part that is not skipped, written down as it is done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu tries the script itself out")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--n", type=int, default=16, help="prompt pairs")
    parser.add_argument("--skip", nargs="*", default=[], choices=list(PARTS), help="parts that are left out")
    parser.add_argument("--tiny", action="store_true", help="a few layers in place of the 8B model")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        print("This machine has no CUDA device, so there is nothing to check.")
        return
    os.environ["CIRCUITOME_DEVICE"] = options.device
    result: dict[str, Any] = {"date": date.today().isoformat(), "torch": torch.__version__, "device": options.device}
    if options.device != "cpu":
        result["device"] = torch.cuda.get_device_name(0)
    start = time.perf_counter()
    for name, part in PARTS.items():
        if name not in options.skip:
            result[name] = part(options)
            result["seconds"] = round(time.perf_counter() - start, 1)
            print(name, json.dumps(result[name], indent=1), f"after {result['seconds']} s", flush=True)
            if options.device != "cpu":
                path = RESULTS / f"gpu-{result['date']}.json"
                path.write_text(json.dumps(result, indent=1) + "\n")


def tried(work: Callable[[], Any], seconds: int = LIMIT) -> Any:
    """What the work gives, or where and why it failed, at the latest after some seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        return work()
    except Exception as error:
        own = [f for f in traceback.extract_tb(error.__traceback__) if "circuitome" in f.filename]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].line}" if own else "?"
        return {"FAILED": f"{type(error).__name__}: {str(error)[:300]}", "at": place}
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def synchronised(options: argparse.Namespace) -> None:
    """Waits until the device has done what it was given."""
    if options.device != "cpu":
        torch.cuda.synchronize()


def parity(options: argparse.Namespace) -> dict[str, Any]:
    """Largest difference between the devices of each method, as a share of its largest number, float32."""
    found: dict[str, Any] = {}
    both = [cm.load(options.model, device=device, dtype=torch.float32) for device in ("cpu", options.device)]
    tasks = [cm.tasks.ioi(model, n=options.n) for model in both]
    for name, method in METHODS.items():

        def compare(method: Method = method) -> dict[str, Any]:
            seconds, values = [], []
            for model, task in zip(both, tasks, strict=True):
                start = time.perf_counter()
                values.append(method(model, task).detach().float().cpu())
                seconds.append(round(time.perf_counter() - start, 2))
            here, there = values
            size = float(here[here.isfinite()].abs().max())
            difference = float((here - there).nan_to_num().abs().max()) / size
            return {"difference": float(f"{difference:.1e}"), "ok": difference < TOLERANCE, "seconds": seconds}

        found[name] = tried(compare)
    return found


def examples(options: argparse.Namespace) -> dict[str, Any]:
    """Every example in a docstring that needs no language model, run on the device."""
    ran, failed = 0, dict[str, str]()
    finder, load = doctest.DocTestFinder(), cm.load

    def loaded(*given: Any, **options: Any) -> "cm.Model":
        """Examples write their ids on the CPU."""
        model = load(*given, **options)
        model.hf.register_forward_pre_hook(_ids_moved, with_kwargs=True)
        return model

    vars(cm)["load"] = loaded

    class Runner(doctest.DocTestRunner):
        """Notes the first failure of each example."""

        def report_failure(self, out: Any, test: Any, example: Any, got: str) -> None:
            failed.setdefault(test.name, f"gave {got.strip()[:150]!r} and not {example.want.strip()[:150]!r}")

        def report_unexpected_exception(self, out: Any, test: Any, example: Any, exc_info: Any) -> None:
            own = [f for f in traceback.extract_tb(exc_info[2]) if "circuitome/" in f.filename]
            place = f"{Path(own[-1].filename).name}:{own[-1].lineno} {own[-1].line}" if own else ""
            failed.setdefault(test.name, f"{type(exc_info[1]).__name__}: {str(exc_info[1])[:200]} at {place}")

    for info in pkgutil.walk_packages(cm.__path__, "circuitome."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for test in finder.find(module, extraglobs={"cm": cm, "torch": torch, "circuitome": cm}):
            if test.examples and not any("smollm2" in example.source for example in test.examples):
                ran += 1
                Runner(verbose=False).run(test, out=lambda _: None)
    vars(cm)["load"] = load
    return {"ran": ran, "failed": failed}


def _ids_moved(hf: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return tree_map(lambda t: t.to(hf.device) if isinstance(t, Tensor) and t.dtype == torch.long else t, (args, kwargs))


def commands(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of some commands on SmolLM2."""
    from circuitome.studies.catalog import STUDIES
    from circuitome.studies.frame import perform

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, given in COMMANDS.items():

            def one(name: str = name, given: dict[str, Any] = given) -> float:
                start, study = time.perf_counter(), STUDIES[name]
                asked = {"run": f"{folder}/{given['run']}"} if "run" in given else {**given, "model": options.model}
                perform(study, study.settings(**asked), out=Path(folder) / name)
                return round(time.perf_counter() - start, 1)

            found[name] = tried(one)
            print(name, found[name], flush=True)
    return found


def speed(options: argparse.Namespace) -> dict[str, Any]:
    """Medians of seconds and their ratios to the bare passes that a method stands for, by precision."""
    found: dict[str, Any] = {}
    scores = dict[torch.dtype, Tensor]()
    for dtype in (torch.float32, torch.bfloat16):
        model = cm.load(options.model, device=options.device, dtype=dtype)
        task = cm.tasks.from_file(model, PAIRS)
        found[str(dtype).removeprefix("torch.")] = tried(lambda m=model, t=task: ratios(options, m, t))  # type: ignore[misc]
        scores[dtype] = cm.eap_ig(model, task).values.cpu()
    exact, rough = scores.values()
    strongest = exact.flatten().abs().topk(min(1_000, exact.numel() // 2)).indices
    difference = (exact - rough).flatten()[strongest].abs()
    found["bfloat16 against float32, strongest 1,000 edges"] = {
        "largest difference by largest score": float(f"{float(difference.max() / exact.abs().max()):.1e}"),
        "median relative difference": float(f"{float((difference / exact.flatten()[strongest].abs()).median()):.1e}"),
        "of the strongest 1,000 in both": int(
            torch.isin(strongest, rough.flatten().abs().topk(len(strongest)).indices).sum()
        ),
    }
    return found


def ratios(options: argparse.Namespace, model: "cm.Model", task: "cm.Task") -> dict[str, Any]:
    """Of EAP, EAP-IG and circuit runs; peak memory in GB beside the weights."""
    ids = torch.tensor([pair.clean for pair in task.pairs], device=model.device)
    circuit = cm.eap(model, task).top(min(1_000, model.graph.n_edges // 2))

    def both() -> Tensor:
        with model.frozen_parameters():
            embeddings = model.hf.get_input_embeddings()(ids).detach().requires_grad_(True)
            logits = model.hf(inputs_embeds=embeddings, logits_to_keep=1, use_cache=False).logits[:, 0]
            return torch.autograd.grad(task.score(logits, range(len(task))).mean(), embeddings)[0]

    def forward() -> Tensor:
        with torch.no_grad():
            return model.hf(ids, logits_to_keep=1, use_cache=False).logits

    jobs: dict[str, Callable[[], object]] = {
        "forward": forward,
        "forward_backward": both,
        "eap": lambda: cm.eap(model, task),
        "eap_ig_5": lambda: cm.eap_ig(model, task, steps=5),
        "run_circuit_1000": lambda: cm.run_circuit(model, task, circuit),
    }
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(6):
        for name, job in jobs.items():
            synchronised(options)
            start = time.perf_counter()
            job()
            synchronised(options)
            if round_:
                taken[name].append(time.perf_counter() - start)
    seconds = {name: median(values) for name, values in taken.items()}
    passes = {"eap": (2, 1), "eap_ig_5": (2, 5), "run_circuit_1000": (1, 0)}
    bare = {n: a * seconds["forward"] + b * seconds["forward_backward"] for n, (a, b) in passes.items()}
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "ratios": {name: round(seconds[name] / bare[name], 2) for name in passes},
    }


def large(options: argparse.Namespace) -> dict[str, Any]:
    """The main methods on a model of Llama-3-8B's shape in bfloat16, 32 pairs of 128 random tokens."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    if options.tiny:
        shape = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**shape, intermediate_size=shape["hidden_size"] * 7 // 2, vocab_size=128_256)
    with torch.device(options.device):
        hf = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if "layers" in name and weight.ndim == 2:
                weight.mul_(3)  # attention that is not flat, and scores away from 0
    model = cm.load(hf.eval())
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for _ in range(32):
        ids = torch.randint(3, 128_000, (128,), generator=generator).tolist()
        pairs.append(Pair(tuple(ids), (*ids[:40], 17, *ids[41:]), (5,), (9,)))
    task = cm.Task("random tokens", tuple(pairs))
    words = torch.randint(3, 128_000, (1_000 if options.tiny else 8_000,), generator=generator).tolist()
    long = cm.Task("long", (Pair(tuple(words), (*words[:40], 17, *words[41:]), (5,), (9,)),))
    parked = model.with_activations_on("cpu")
    found: dict[str, Any] = {"edges": model.graph.n_edges, "weights_gb": round(memory(options), 1)}
    found |= {"ratios": tried(lambda: ratios(options, model, task))}
    works: dict[str, Callable[[], object]] = {
        "eap": lambda: cm.eap(model, task),
        "eap_ig_5": lambda: cm.eap_ig(model, task, steps=5),
        "atp": lambda: cm.atp(model, task),
        "route_scores": lambda: cm.route_scores(model, cm.Task("two", tuple(pairs[:2]))),
        "routes": lambda: cm.routes(model, list(pairs[0].clean)),
        "mattr_2": lambda: cm.mattr(model, task, steps=2),
        "eap of one long pair, activations on the CPU": lambda: cm.eap(parked, long),
        "routes of a long prompt, activations on the CPU": lambda: cm.routes(parked, words),
        "patch heads": lambda: cm.patch(model, cm.Task("two", tuple(pairs[:2]))),
        "attribution_graph": lambda: cm.attribution_graph(model, list(pairs[0].clean)[:14]),
        "graph_scores of 100 neurons": lambda: cm.neurons.graph_scores(
            model.with_neurons([f"m{len(model.blocks) // 2}.n{i}" for i in range(100)]), task, steps=1
        ),
    }
    for name, work in works.items():

        def measured(work: Callable[[], object] = work) -> dict[str, float]:
            if options.device != "cpu":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            before, start = memory(options), time.perf_counter()
            work()
            synchronised(options)
            seconds = time.perf_counter() - start
            return {"seconds": round(seconds, 2), "gb_beside_weights": round(peak(options) - before, 2)}

        found[name] = tried(measured)
        print(name, found[name], flush=True)
    return found


def memory(options: argparse.Namespace) -> float:
    """GB that tensors take on the device."""
    return torch.cuda.memory_allocated() / 1e9 if options.device != "cpu" else 0.0


def peak(options: argparse.Namespace) -> float:
    """The most GB since it was reset."""
    return torch.cuda.max_memory_allocated() / 1e9 if options.device != "cpu" else 0.0


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "parity": parity,
    "speed": speed,
    "examples": examples,
    "large": large,
    "commands": commands,
}

if __name__ == "__main__":
    main()
