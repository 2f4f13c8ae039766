"""What mattr's ends depend on: faithfulness at five sizes, own and held-out prompts, of some ways to train the ranking.

IOI and Greater-Than on SmolLM2-135M, 32 pairs each, seeds 0 and 1. A variant is named by prompts a step, steps, and the
largest size trained: 8x200x10000 is what `cm.mattr` does.
"""

import argparse
import json
import time
from datetime import date
from unittest import mock

from agreement import GENERATORS
from rules import faithfulness
from speed import HERE, SIZES, machine

import circuitome as cm
from circuitome.discovery.search import mask_objective, matryoshka

VARIANTS = ("8x200x10000", "32x120x10000", "32x120x70651", "32x300x70651")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", nargs="*", default=VARIANTS)
    parser.add_argument("--tasks", nargs="*", default=list(GENERATORS))
    parser.add_argument("--n", type=int, default=32, help="prompt pairs")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    model = cm.load("smollm2-135m")
    path = HERE / "results" / f"matryoshka-{date.today()}.json"
    result = json.loads(path.read_text()) if options.write and path.is_file() else {}
    result |= {"date": date.today().isoformat(), "machine": f"{machine()}, {model.device}", "sizes": SIZES}
    for name in options.tasks:
        own, held_out = (GENERATORS[name](model, n=options.n, seed=seed) for seed in (0, 1))
        start = cm.eap_ig(model, own)
        for variant in options.variants:
            prompts, steps, largest = map(int, variant.split("x"))
            began = time.perf_counter()
            with (
                mock.patch.object(mask_objective, "PROMPTS", prompts),
                mock.patch.object(matryoshka, "SHARES", (matryoshka.SHARES[0], 1.0)),
                mock.patch.object(matryoshka.Training.__init__, "__defaults__", _defaults(largest)),
            ):
                scores = cm.mattr(model, own, steps=steps, start=start)
            row = {"seconds": round(time.perf_counter() - began, 1)}
            row |= {"own": faithfulness(model, scores, own), "held out": faithfulness(model, scores, held_out)}
            result.setdefault(name, {})[variant] = row
            print(name, variant, json.dumps(row), flush=True)
            if options.write:
                path.write_text(json.dumps(result, indent=1) + "\n")


def _defaults(largest: int) -> tuple[object, ...]:
    """The defaults of `Training` with another largest size."""
    known = matryoshka.Training.__init__.__defaults__
    assert known is not None and known[0] == matryoshka.SIZES
    return ((matryoshka.SIZES[0], largest), *known[1:])


if __name__ == "__main__":
    main()
