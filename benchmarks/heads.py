"""Cost of the atlas of heads as a ratio to the bare forward pass of the same tokens, in one process."""

import argparse
import json
from datetime import date

import torch
from speed import HERE, bare_forward, machine, medians, one_thread

import circuitome as cm
from circuitome.heads.atlas.all_heads import head_atlas
from circuitome.heads.atlas.patterns import pattern_scores
from circuitome.heads.atlas.repeated import repeated_tokens

N, PERIOD = 16, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    model = cm.load("smollm2-135m")
    repeated = repeated_tokens(model, n=N, period=PERIOD)
    seconds = medians(
        {
            "forward": lambda: bare_forward(model, repeated.inputs.ids),
            "patterns": lambda: pattern_scores(model, repeated),
            "atlas_without_noise": lambda: head_atlas(model, n=N, period=PERIOD, random=()),
            "atlas": lambda: head_atlas(model, n=N, period=PERIOD),
        },
        options.repeats,
    )
    result = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "tokens": repeated.inputs.ids.numel(),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "ratios": {name: round(value / seconds["forward"], 2) for name, value in seconds.items()},
        "above_chance": alarms(model),
    }
    print(json.dumps(result, indent=1))
    if options.write:
        path = HERE / "results" / f"heads-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)


def alarms(model: cm.Model, seeds: tuple[int, ...] = (1, 2), threshold: float = 0.3) -> dict[str, list[int]]:
    """Heads of the model, and of models of noise, whose share of attention is at least `threshold`, by score."""
    found = pattern_scores(model, repeated_tokens(model, n=8, period=PERIOD), random=seeds)
    counts = {}
    for name in ("previous", "duplicate", "induction", "self", "sink4"):
        score = found[name]
        assert score.random is not None
        models: list[torch.Tensor] = [score.mean, *score.random]
        counts[name] = [int((values >= threshold).sum()) for values in models]
    return counts


if __name__ == "__main__":
    main()
