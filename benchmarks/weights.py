"""What reading weights costs, as ratios to the bare Hugging Face forward of 32 prompts, in one process."""

import argparse
import json
from collections.abc import Callable
from datetime import date

import torch
from speed import HERE, bare_forward, machine, medians, one_thread

import circuitome as cm

HEAD = "a27.h1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    task = cm.tasks.from_file(model, HERE / "ioi32.jsonl")
    ids = torch.tensor([pair.clean for pair in task.pairs])
    jobs: dict[str, Callable[[], object]] = {
        "forward": lambda: bare_forward(model, ids),
        "copying_scores": lambda: cm.copying_scores(model),
        "composition": lambda: cm.composition(model),
        "qk_pairs_2048_rows": lambda: cm.weights.qk_pairs(model, HEAD),
        "ov_pairs_2048_rows": lambda: cm.weights.ov_pairs(model, HEAD),
        "direct_logit_attribution": lambda: cm.direct_logit_attribution(model, task),
        "logit_lens_one_prompt": lambda: cm.logit_lens(model, task.pairs[0].clean),
    }
    seconds = medians(jobs, options.repeats)
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ratios": {name: round(value / seconds["forward"], 2) for name, value in seconds.items()},
    }
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"weights-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


if __name__ == "__main__":
    main()
