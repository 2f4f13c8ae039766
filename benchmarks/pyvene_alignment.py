"""DAS, boundless DAS and masks beside pyvene's: same pairs, batches, steps and rates. See benchmarks/README.md.

    python benchmarks/pyvene_alignment.py [--environment FOLDER] [--ioi] [--write]

pyvene runs in an environment of its own, made in a temporary folder (or taken from --environment), which sees torch,
transformers and circuitome of the one that started it.
"""

import argparse
import datetime
import json
import os
import site
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

PACKAGES = ("matplotlib", "plotnine", "datasets", "ipywidgets", "sentencepiece", "protobuf")
"""What pyvene imports beside torch and transformers."""
VERSION = "0.1.8"
SEEDS = (0,)
EPOCHS = 60
BATCH = 16
CASES = (
    ("known-equality", "left", "x2@end", "das", 4, 192),
    ("known-equality", "right", "x2@end", "das", 4, 192),
    ("known-equality", "left", "x2@end", "boundless", 0, 192),
    ("known-equality", "left", "m1.n*@end", "mask", 0, 192),
    ("known-ioi", "repeated", "x2@end", "das", 8, 96),
    ("known-ioi", "repeated", "x2@end", "boundless", 0, 96),
)
IOI = (("ioi", "position", "x18@S2", "das", 1, 64),)


def environment(folder: Path) -> Path:
    """The Python of an environment with pyvene, made where it is not there yet."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        base = [path for path in site.getsitepackages() if Path(path).is_dir()]
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (folder / "lib" / version / "site-packages" / "base.pth").write_text("\n".join(base) + "\n")
        for options in (("--no-deps", f"pyvene=={VERSION}"), PACKAGES):
            subprocess.run([python, "-m", "pip", "install", "-q", *options], check=True)
    return python


def prepared(name, variable, place, seed, n):
    """Searching and held-out pairs of a case, drawn as `cm.causal.das` does."""
    import circuitome as cm
    from circuitome.causal.trials import trials
    from circuitome.engine.setting import Setting

    known = name.startswith("known-")
    model = cm.load(name if known else "smollm2-135m")
    draw = cm.ground_truth.task if known else (lambda name, n, seed: cm.tasks.ioi(model, n, seed))
    tasks = draw(name, n, seed=10 * seed), draw(name, n, seed=10 * seed + 1)
    causal = cm.causal.ready(name)
    return model, [trials(Setting(model, task, seed=seed), causal, [variable]) for task in tasks]


def ours(pairs, held, place, variable, search, k):
    """Held-out IIA of `cm.causal.das`, and the size that it learned."""
    from circuitome.causal.interchanges import answers_at, right_at
    from circuitome.causal.searches import learned
    from circuitome.causal.sites import Place

    subspace = learned(pairs, place, variable, max(1, k), epochs=EPOCHS, search=search)
    where = Place.parse(place, pairs.model)
    return float(right_at(held, variable, answers_at(held, where, subspace)).mean()), subspace.k


def theirs(pairs, held, place, variable, search, k):
    """The same by pyvene's IntervenableModel: its interventions, rotations, boundaries and masks."""
    import pyvene as pv
    import torch

    from circuitome.causal import searches
    from circuitome.causal.sites import NEURONS, Place

    part = Place.parse(place, pairs.model).parts[0]
    prefix = "layers" if pairs.model.name.startswith("known-") else "model.layers"
    if part.site.kind == NEURONS:
        component = f"{prefix}[{part.site.layer}].fc2.input"
    else:
        component = f"{prefix}[{part.site.layer - 1}].output"
    kinds = {
        "das": pv.LowRankRotatedSpaceIntervention,
        "boundless": pv.BoundlessRotatedSpaceIntervention,
        "mask": pv.SigmoidMaskIntervention,
    }
    width = pairs.values_of(Place.parse(place, pairs.model))[0].shape[-1]
    torch.manual_seed(pairs.setting.seed)
    kwargs = {"embed_dim": width} | ({"low_rank_dimension": k} if search == "das" else {})
    intervention = kinds[search](**kwargs)
    config = pv.IntervenableConfig([{"component": component, "intervention": intervention, "unit": "pos"}])
    pv_model = pv.IntervenableModel(config, model=pairs.model.hf)
    pv_model.disable_model_gradients()
    rates = {"das": searches.RATE, "mask": searches.MASK_RATE, "boundless": searches.RATE}
    own = list(intervention.named_parameters())
    groups = [
        {"params": [p], "lr": searches.BOUNDARY_RATE if "boundaries" in n else rates[search]}
        for n, p in own
        if "temperature" not in n and "population" not in n
    ]
    optimizer = torch.optim.Adam(groups)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS)
    chunks = list(pairs.chunks(BATCH, gradients=True))
    for epoch in range(EPOCHS):
        drawn = pairs if not epoch else pairs.redrawn(pairs.setting.seed + epoch)
        for number, chunk in enumerate(chunks):
            done = (epoch * len(chunks) + number) / max(1, EPOCHS * len(chunks) - 1)
            penalty = heated(intervention, search, done)
            loss = searches.cross_entropy(run(pv_model, drawn, chunk, part), drawn.expected[0][chunk]) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        slower.step()
    size = hardened(intervention, search, k)
    with torch.no_grad():
        said = torch.cat(
            [run(pv_model, held, chunk, part).argmax(1) for chunk in torch.arange(len(held.base)).split(64)]
        )
    return float(held.expected[0].gather(1, said[:, None]).float().mean()), size


def heated(intervention, search, done):
    """The penalty of a step, with the temperature of that step set."""
    import torch

    from circuitome.causal import searches

    if search == "boundless":
        intervention.set_temperature(torch.tensor(searches.heat(int(intervention.embed_dim), done)))
        return searches.PRICE * intervention.intervention_boundaries.sum()
    if search == "mask":
        heat = searches.MASK_SOFT * (searches.MASK_HARD / searches.MASK_SOFT) ** done
        intervention.set_temperature(torch.tensor(heat))
        return searches.SPARSE * torch.sigmoid(intervention.mask / heat).mean()
    return 0.0


def hardened(intervention, search, k):
    """What is kept is kept whole; its size."""
    import torch

    if search == "mask":
        intervention.set_temperature(torch.tensor(1e-4))
        return int((intervention.mask > 0).sum())
    if search == "boundless":
        intervention.set_temperature(torch.tensor(1e-3))
        kept = round(float(intervention.intervention_boundaries.detach().clamp(1e-3, 1)) * int(intervention.embed_dim))
        intervention.set_intervention_boundaries((kept - 0.5) / int(intervention.embed_dim))
        return kept
    return k


def run(pv_model, pairs, chunk, part):
    """Logits of the answers for some pairs under pyvene's intervention."""
    import torch

    rows = [(pairs.base[i].item(), pairs.source[i].item()) for i in chunk]
    prompts = [[pairs.task.pairs[row].clean for row in column] for column in zip(*rows, strict=True)]
    at = [
        [[int(pairs.positions[row, pairs.column(part.role), 0])] for row in column]
        for column in zip(*rows, strict=True)
    ]
    ends = [pairs.task.pairs[base].answer_position for base, _ in rows]

    def padded(ids):
        longest = max(map(len, ids))
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        return {"input_ids": torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids]), "attention_mask": mask}

    _, out = pv_model(padded(prompts[0]), [padded(prompts[1])], {"sources->base": ([at[1]], [at[0]])})
    return out.logits[torch.arange(len(ends)), ends][:, list(pairs.tokens)].float()


def measure(cases) -> list[dict]:
    """Every case, mean over seeds."""
    results = []
    for name, variable, place, search, k, n in cases:
        rows = []
        for seed in SEEDS:
            _, (pairs, held) = prepared(name, variable, place, seed, n)
            row = {}
            for who, method in (("circuitome", ours), ("pyvene", theirs)):
                start = time.process_time()
                row[who], row[f"{who} size"] = method(pairs, held, place, variable, search, k)
                row[f"{who} s"] = round(time.process_time() - start, 1)
            rows.append(row)
            print(name, variable, place, search, seed, row, flush=True)
        mean = {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in rows[0]}
        results.append({"case": [name, variable, place, search, k, n], "mean": mean, "seeds": rows})
    return results


def main() -> None:
    """Make the environment, run in it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path, help="where the environment is, or is to be")
    parser.add_argument("--ioi", action="store_true", help="only the case on SmolLM2")
    parser.add_argument("--write", action="store_true", help="write a dated result")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:
        folder = args.environment or Path(tempfile.mkdtemp()) / "pyvene"
        root = Path(__file__).resolve().parents[1]
        command = [environment(folder), __file__, "--inside", *sys.argv[1:]]
        raise SystemExit(subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}).returncode)
    results = measure(IOI if args.ioi else CASES)
    if args.write:
        name = f"pyvene-{'ioi-' * args.ioi}{datetime.date.today()}.json"
        text = json.dumps({"pyvene": VERSION, "epochs": EPOCHS, "batch": BATCH, "cases": results}, indent=1)
        (Path(__file__).parent / "results" / name).write_text(text + "\n")


if __name__ == "__main__":
    main()
