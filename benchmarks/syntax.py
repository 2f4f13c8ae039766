"""Syntax of SmolLM2 on real treebanks and minimal pairs: arcs by relation beside offsets, BLiMP by phenomenon.

    python benchmarks/syntax.py --trees en_ewt-ud-dev.conllu en_pud-ud-test.conllu --pairs blimp/data --write

Trees: UniversalDependencies/UD_English-EWT and UD_English-PUD (CC BY-SA 4.0); pairs: alexwarstadt/blimp (CC BY 4.0).
Neither is part of circuitome. Of each treebank some sentences are counted again, word by word, from the file's own
lines and the attention that Hugging Face's model returns; a difference stops the script. A part that today's result
has is not measured again.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from speed import HERE, machine, one_thread

import circuitome as cm
from circuitome.dynamics.arcs import OFFSETS, Syntax
from circuitome.results import proportion

FEW = 100
"""Arcs that a relation needs."""
BETWEEN_TEXTS = "<|endoftext|>"
"""What stands between texts in SmolLM2's pretraining."""
Arc = tuple[str, int, int]
"""Relation, child, head: words from 0."""
Written = tuple[str, list[Arc], list[tuple[int, int]]]
"""Text, arcs, and where each word stands."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trees", nargs="*", default=[])
    parser.add_argument("--pairs", help="folder with BLiMP's files")
    parser.add_argument("--n-pairs", type=int, default=50, help="pairs of each of the 67 rules")
    parser.add_argument("--sentences", type=int, default=600, help="of each treebank, evenly from all of it")
    parser.add_argument("--check", type=int, default=25, help="sentences of each treebank that are counted again")
    parser.add_argument("--write", action="store_true", help="write the result under benchmarks/results")
    options = parser.parse_args()
    one_thread()
    path = HERE / "results" / f"syntax-{date.today()}.json"
    result = json.loads(path.read_text()) if options.write and path.is_file() else {}
    model = cm.load("smollm2-135m")
    result |= {"machine": machine(), "model": model.name}
    for name, part in parts(model, options, result):
        result[name] = part
        print(name, json.dumps({key: value for key, value in part.items() if key not in ("kinds", "head_share")}))
        if options.write:
            path.write_text(json.dumps(result, indent=1) + "\n")


def parts(model: cm.Model, options: argparse.Namespace, result: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and numbers of each treebank and of the pairs, but for those that the result has."""
    for file in options.trees:
        if (name := Path(file).stem) not in result:
            yield name, treebank(model, file, options.sentences, options.check)
    fronts = {"pairs": (), "pairs after the token between texts": tuple(model.encode(BETWEEN_TEXTS))}
    for name, front in fronts.items() if options.pairs else ():
        if name not in result:
            yield name, minimal_pairs(model, Path(options.pairs), options.n_pairs, front)


def treebank(model: cm.Model, file: str, sentences: int, check: int) -> dict[str, Any]:
    """Arcs by relation in sentences from all over the file, once it is sure that a slow count gives the same."""
    every = cm.dynamics.read_trees(file)
    step = max(1, len(every) // sentences)
    found = cm.dynamics.syntax(model, every[::step][:sentences], min_arcs=FEW)
    known = written(file)[::step][:sentences]
    checked = {"arcs": check_arcs(model, known, found, check), "offsets": check_offsets(known, found)}
    return {**found.to_dict(), "checked": checked}


# Counted again, without the package's reader, alignment or attention


def written(file: str) -> list[Written]:
    """The sentences, from the lines of the file."""
    sentences = []
    for block in Path(file).read_text("utf-8").strip().split("\n\n"):
        lines = block.split("\n")
        (text,) = (line.removeprefix("# text = ") for line in lines if line.startswith("# text = "))
        rows = [line.split("\t") for line in lines if line.split("\t")[0].isdigit()]
        places, at = list[tuple[int, int]](), 0
        for row in rows:
            start = text.index(row[1], at)
            at = start + len(row[1])
            places.append((start, at))
        sentences.append((text, _arcs(rows), places))
    return sentences


def _arcs(rows: Sequence[Sequence[str]]) -> list[Arc]:
    relations = [(row[7].split(":")[0], int(row[0]) - 1, int(row[6]) - 1) for row in rows]
    return [arc for arc in relations if arc[0] not in ("root", "punct")]


def check_arcs(model: cm.Model, known: Sequence[Written], found: Syntax, check: int) -> int:
    """How many arcs of the first sentences were compared, head by head. Raises `AssertionError`."""
    compared = 0
    for number, (text, arcs, places) in enumerate(known[:check]):
        rows = (found.sentence == number).nonzero()[:, 0].tolist()
        kept = [arc for arc in arcs if f"{arc[0]}, {'child' if arc[1] < arc[2] else 'head'} first" in found.kinds]
        if not rows:
            continue
        assert len(rows) == len(kept), (number, text)
        guesses = slow_guesses(model, text, places)
        for row, (_, child, head) in zip(rows, kept, strict=True):
            later, earlier = max(child, head), min(child, head)
            right = guesses[:, :, later] == earlier
            direction = int(child < head)
            assert torch.equal(found.by_head[row, direction], right), (number, text, child, head)
            assert not found.by_head[row, 1 - direction].any()
            compared += 1
    return compared


def slow_guesses(model: cm.Model, text: str, places: Sequence[tuple[int, int]]) -> torch.Tensor:
    """[layer, head, word]: for each word the earlier word with the most attention."""
    tokenizer: Any = model.tokenizer
    coded = tokenizer(text, return_offsets_mapping=True)
    tokens = [
        [t for t, (a, b) in enumerate(coded["offset_mapping"]) if max(a, start) < min(b, end)] for start, end in places
    ]
    with model.eager_attention(), torch.no_grad():
        attentions = model.hf(input_ids=torch.tensor([coded["input_ids"]]), output_attentions=True).attentions
    guesses = torch.full((len(attentions), attentions[0].shape[1], len(places)), -1)
    for layer, patterns in enumerate(attentions):
        for later in range(1, len(places)):
            by_word = [patterns[0][:, tokens[later]][:, :, tokens[word]].sum(2).mean(1) for word in range(later)]
            guesses[layer, :, later] = torch.stack(by_word, 1).argmax(1)
    return guesses


def check_offsets(known: Sequence[Written], found: Syntax) -> int:
    """How many kinds of arcs have the best offset that a count over the sentences gives. Raises `AssertionError`."""
    counts: dict[str, Counter[int]] = {}
    used = set(found.sentence.tolist())
    for number, (_, arcs, _) in enumerate(known):
        for relation, child, head in arcs if number in used else ():
            kind = f"{relation}, {'child' if child < head else 'head'} first"
            counts.setdefault(kind, Counter())[min(child, head) - max(child, head)] += 1
    for i, (kind, best) in enumerate(zip(found.kinds, found.best("offset"), strict=True)):
        near = {offset: count for offset, count in counts[kind].items() if offset in OFFSETS}
        share = max(near.values()) / counts[kind].total()
        assert counts[kind].total() == int((found.kind == i).sum()), kind
        assert abs(share - float(found.by_offset[found.kind == i].float().mean(0).max())) < 1e-6, kind
        assert near[int(best.split(",")[0])] == max(near.values()), kind
    return len(found.kinds)


def minimal_pairs(model: cm.Model, folder: Path, n: int, front: tuple[int, ...]) -> dict[str, Any]:
    """Accuracy by phenomenon, as means over pairs; each rule has as many."""
    files = sorted(folder.glob("*.jsonl"))
    phenomena, pairs = dict[str, str](), list[cm.dynamics.MinimalPair]()
    for file in files:
        some = cm.dynamics.read_pairs(file)[:n]
        phenomena[some[0].kind] = json.loads(file.read_text("utf-8").partition("\n")[0])["linguistics_term"]
        pairs += some
    scores = cm.dynamics.pair_scores(model, pairs, front=front)
    by_phenomenon = dict[str, list[float]]()
    for kind, right in zip(scores.kinds, scores.right.tolist(), strict=True):
        by_phenomenon.setdefault(phenomena[kind], []).append(right)
    first = float(torch.tensor([_first_differs(model, pair) for pair in pairs]).mean())
    return {
        **scores.to_dict(),
        "front": list(front),
        "first token differs": first,
        "phenomena": {
            name: proportion(torch.tensor(right), "share of pairs").to_dict() for name, right in by_phenomenon.items()
        },
    }


def _first_differs(model: cm.Model, pair: cm.dynamics.MinimalPair) -> float:
    return float(model.encode(pair.good)[0] != model.encode(pair.bad)[0])


if __name__ == "__main__":
    main()
