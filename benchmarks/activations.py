"""Peak memory and time of edge attribution and routes where activations wait with the model, or on disk.

    python benchmarks/activations.py [--tokens 512,2048] [--write]

SmolLM2-135M, float32, one thread, one pair of prompts that differ in their tenth token; each case in a process of its
own, whose peak the operating system counts, weights and program (1.08 GB) included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from datetime import date
from typing import Any

from speed import HERE, machine

METHODS = ("eap", "eap-ig", "routes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="512,2048")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one[0], int(options.one[1]), options.one[2])))
        return
    path = HERE / "results" / f"activations-{date.today()}.json"
    for method in options.methods.split(","):
        for tokens in options.tokens.split(","):
            for place in ("device", "disk"):
                words = [sys.executable, __file__, "--one", method, tokens, place]
                told = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
                found = json.loads(told.stdout) if not told.returncode else {"failed": told.stderr[-300:]}
                print(method, tokens, place, json.dumps(found), flush=True)
                if options.write:
                    before = json.loads(path.read_text()) if path.exists() else {}
                    before |= {"machine": machine(), f"{method}, {tokens} tokens, {place}": found}
                    path.write_text(json.dumps(before, indent=1) + "\n")


def measured(method: str, tokens: int, place: str) -> dict[str, Any]:
    """Peak bytes, seconds, and a sum that must not depend on the place."""
    import torch

    import circuitome as cm
    from circuitome.tasks.task import Pair, Task

    torch.set_num_threads(1)
    model = cm.load("smollm2-135m").with_activations_on(place)
    ids = torch.randint(1000, 40_000, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    task = Task("long", (Pair(tuple(ids), (*ids[:9], 777, *ids[10:]), (260,), (262,)),))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    if method == "routes":
        total = len(cm.routes(model, ids, threshold=0.02).edges)
    else:
        score = cm.eap if method == "eap" else cm.eap_ig
        budget = tokens * model.bytes_per_token(gradients=True)  # one point of the path at a time
        total = float(score(model, task, max_memory=budget).values.double().sum())
    return {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "loaded": before * 1024,
        "seconds": round(time.process_time() - start, 1),
        "sum": total,
    }


if __name__ == "__main__":
    main()
