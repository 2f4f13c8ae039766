"""How often each hypothesis test is wrong on random scores, and how often it finds a planted effect.

No model is needed: the tests see scores of prompts. Under the null, scores lie at its edge, where rejections are
likeliest; the rate must not be above alpha by more than chance. A minute on two cores.
"""

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from scipy.stats import binomtest

from circuitome.validation.tests.hypotheses import ALPHA, better_than_random, equivalence, independence, needed_edges

REPEATS = 1000
PROMPTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    draw = torch.Generator().manual_seed(0)
    cases: dict[str, tuple[Callable[[], bool], Callable[[], bool]]] = {
        "equivalence": (lambda: won(0.6, draw), lambda: won(0.85, draw)),
        "independence": (lambda: related(0.0, draw), lambda: related(1.0, draw)),
        "sufficiency, 50 draws": (lambda: above(0.9, 50, draw), lambda: above(0.999, 50, draw)),
        "necessity, 50 draws": (lambda: above(0.9, 50, draw), lambda: above(0.999, 50, draw)),
        "minimal edges, 100 at once": (lambda: useless(0, draw), lambda: useless(5, draw)),
    }
    result: dict[str, object] = {"date": date.today().isoformat(), "alpha": ALPHA, "repeats": REPEATS}
    for name, (null, planted) in cases.items():
        false, found = (sum(case() for _ in range(REPEATS)) for case in (null, planted))
        low, high = binomtest(false, REPEATS).proportion_ci()
        result[name] = {"false_positives": false / REPEATS, "interval": [low, high], "power": found / REPEATS}
        print(name, result[name], flush=True)
        assert low <= ALPHA, f"{name} rejects a true null too often"
    if options.write:
        path = Path(__file__).parent / "results" / f"hypothesis-{result['date']}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


def won(chance: float, draw: torch.Generator) -> bool:
    """A circuit that scores above the model with this chance on each prompt."""
    scores = (torch.rand(PROMPTS, generator=draw) < chance).float() * 2 - 1
    return equivalence(scores, torch.zeros(PROMPTS)).rejected()


def related(strength: float, draw: torch.Generator) -> bool:
    """A complement whose score is the model's times `strength`, plus noise of the same size."""
    model, noise = torch.randn(2, PROMPTS, generator=draw)
    return independence(strength * model + noise, model, permutations=199).rejected()


def above(quantile: float, draws: int, draw: torch.Generator) -> bool:
    """A circuit at this quantile of random ones."""
    return better_than_random("", quantile, torch.rand(draws, generator=draw).tolist()).rejected()


def useless(planted: int, draw: torch.Generator) -> bool:
    """A hundred edges at the edge of being needed, some of them replaced by useless ones."""
    random = torch.rand(50, generator=draw)
    edges = torch.full((100,), 0.9)
    edges[:planted] = torch.rand(planted, generator=draw)
    return any(one.rejected() for one in needed_edges(edges, random))


if __name__ == "__main__":
    main()
