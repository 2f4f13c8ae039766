"""Makes small runs of many studies in a folder: `python make_runs.py FOLDER`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from letters import WORDS, save_letters

import circuitome as cm
from circuitome.cli.main import main
from circuitome.features.formats import read

KNOWN = {
    "found": ["find", "known-ioi", "--n=16"],
    "small": ["find", "known-ioi", "--n=16", "--method=eap", "--edges=20"],
    "heads": ["heads"],
    "patched": ["patch", "known-ioi", "--n=8"],
    "compared": ["compare", "known-ioi", "--n=8", "--methods=eap,eap-ig,atp"],
    "aligned": ["align", "known-ioi", "--n=16"],
}
"""Folder of a run of the model whose circuit is known, and its command."""
LETTERS = {
    "neurons": ["neurons", "--texts=TEXTS", "--length=24", "--tokens=1500"],
    "dictionary": ["dictionary", "train", "--texts=TEXTS", "--layer=1", "--width=2x", "--k=4", "--length=20"],
    "graph": ["graph", "a b c d e", "--expand=12", "--off=0", "--heads=0"],
    "features": ["features", "DICTIONARY", "--texts=TEXTS", "--tokens=400", "--length=20"],
}
"""The same for a random model that reads letters."""
TRAINED = {"developed": ["develop", "--steps=40", "--width=32", "--length=24", "--batch=8"]}
"""Models that a run trains itself."""
OF_RUNS = {"explained": ["explain", "SMALL"], "different": ["diff", "FOUND", "SMALL"]}
"""What is said of runs above."""


def make(folder: Path) -> None:
    """Make all runs."""
    beside = folder.with_name(folder.name + "-given")
    beside.mkdir(parents=True)
    save_letters(beside / "model")
    texts = beside / "texts.txt"
    texts.write_text(" ".join(WORDS[(i * i + i // 7) % 16] for i in range(2000)))  # in an order that is no pattern
    cm.features.load = lambda path, **_: read(path)  # unchecked: that model cannot read the English of the check
    given = {
        "--texts=TEXTS": f"--texts={texts}",
        **{name.upper(): str(folder / name) for name in ("dictionary", "found", "small")},
    }
    for runs, model in (
        (KNOWN, ["--model=known-ioi"]),
        (LETTERS, [f"--model={beside / 'model'}"]),
        (TRAINED, []),
        (OF_RUNS, []),
    ):
        for name, words in runs.items():
            main([*(given.get(word, word) for word in words), *model, f"--out={folder / name}"])


make(Path(sys.argv[1]).resolve())
