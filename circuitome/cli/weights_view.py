"""One head by its weights, and the logit lens, in the terminal."""

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitome.errors import InputError
from circuitome.models.model import Model
from circuitome.weights.circuits import ov_circuit, qk_circuit
from circuitome.weights.copying import copying_scores
from circuitome.weights.head_composition import KINDS, chance, composition
from circuitome.weights.pairs import ov_pairs, qk_pairs

Tell = Callable[[str, int, int], None]

STEPS = 5
"""Parts of the work that the bar counts."""
SURE = 0.99
"""Share of random pairs below the score that is called the limit of chance."""


def examine(
    model: Model, head: str, *, tokens: str | None, offset: int, top: int, rows: int | None, seed: int, progress: Tell
) -> dict[str, Any]:
    """Everything that `circuitome weights` prints, as plain JSON values."""
    what = f"weights of {head}"
    qk = qk_circuit(model, head, offset=offset)  # refuses a wrong head before anything long begins
    ids = model.encode_answer(tokens) if tokens else []
    if tokens is not None and not ids:
        raise InputError("--tokens is empty; give text, or leave it out for the strongest tokens of the vocabulary.")
    progress(what, 0, STEPS)
    search: dict[str, Any] = {"k": top, "rows": rows, "tokens": ids}
    pairs = {"qk": qk_pairs(model, head, offset=offset, **search).to_dict()}
    progress(what, 1, STEPS)
    pairs |= {
        "ov_promoted": ov_pairs(model, head, **search).to_dict(),
        "ov_suppressed": ov_pairs(model, head, suppressed=True, **search).to_dict(),
    }
    progress(what, 2, STEPS)
    copying = _copying(model, head)
    progress(what, 3, STEPS)
    composed = _composition(model, head, top, seed)
    progress(what, STEPS, STEPS)
    return {
        "kind": "weights",
        "model": model.name,
        "head": head,
        "offset": offset,
        "tokens": tokens,
        "norms": {"qk": float(qk.norm()), "ov": float(ov_circuit(model, head).norm())},
        "copying": copying,
        "pairs": pairs,
        "composition": composed,
    }


def _copying(model: Model, head: str) -> dict[str, Any]:
    """Copying score and its rank; None where outputs are not input tokens."""
    layer, index = (int(part[1:]) for part in head.split("."))
    try:
        scores = copying_scores(model)
    except InputError as error:
        return {"score": None, "rank": None, "heads": None, "note": str(error)}
    own = scores[layer, index]
    return {"score": float(own), "rank": int((scores > own).sum()) + 1, "heads": scores.numel(), "note": ""}


def _composition(model: Model, head: str, top: int, seed: int) -> dict[str, Any]:
    """The strongest partners of a head through q, k and v, and what chance would give."""
    if model.graph.n_layers < 2:
        return {"baseline": None, "kinds": {}}
    found = composition(model)
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        sides = found.with_head(head, kind, top)
        limit = float(chance(model, kind, seed=seed).quantile(SURE))
        kinds[kind] = {
            "chance_99": limit,
            **{side: [{"head": name, "score": score} for name, score in best] for side, best in sides.items()},
        }
    return {"baseline": found.baseline, "kinds": kinds}


def print_head(found: dict[str, Any]) -> None:
    """The tables of one head."""
    console = Console(highlight=False)
    norms, copying = found["norms"], found["copying"]
    console.print(Text.assemble(("\n" + found["head"], "bold"), " in ", (found["model"], "bold"), " by its weights"))
    if copying["score"] is None:
        console.print(Text(f"No copying score: {copying['note']}"))
    else:
        console.print(
            f"Copying score {copying['score']:+.3f} (1 copies, -1 does the opposite), rank {copying['rank']} of "
            f"{copying['heads']} heads."
        )
    console.print(f"Norms: W_QK {norms['qk']:.2f}, W_OV {norms['ov']:.2f}.")
    apart = f", key {found['offset']} before the query" if found["offset"] else ", rotation left out"
    titles = {
        "qk": (f"QK: tokens that look for tokens ({{unit}}{apart})", "query", "key"),
        "ov_promoted": ("OV: attending to a token raises the logits of ({unit})", "attended to", "raised"),
        "ov_suppressed": ("OV: attending to a token lowers the logits of ({unit})", "attended to", "lowered"),
    }
    for name, (title, first, second) in titles.items():
        part = found["pairs"][name]
        rows = [(_quoted(p["from"]), _quoted(p["to"]), f"{p['value']:.2f}") for p in part["pairs"]]
        _table(console, title.format(unit=part["unit"]), (first, second, "value"), rows)
        console.print(Text(_searched(part), style="dim"))
    _print_composition(console, found["composition"])


def _searched(part: dict[str, Any]) -> str:
    words = f"{part['rows_searched']:,} of {part['rows']:,} rows searched, the longest vectors first"
    return f"{words}: no other row can hold a stronger pair" if part["proven"] else f"{words}; --rows 0 searches all"


def _print_composition(console: Console, composed: dict[str, Any]) -> None:
    if not composed["kinds"]:
        console.print(Text("\nOne layer: no head composes with another."))
        return
    rows = []
    for kind, found in composed["kinds"].items():
        limit = found["chance_99"]
        for side, words in (("earlier", "reads"), ("later", "is read by")):
            best = "  ".join(
                f"{one['head']} {one['score']:.3f}{'*' * (one['score'] > limit)}" for one in found[side][:5]
            )
            rows.append((f"{kind} {words}", best or "-", f"{limit:.3f}"))
    title = f"Composition (chance gives {composed['baseline']:.3f}; *: above 99 % of random pairs)"
    _table(console, title, ("through", "strongest heads", "99 %"), rows)


def print_lens(found: dict[str, Any], last: int) -> None:
    """For the last positions: prediction, probability and rank of the target, distance to the end, stage by stage."""
    console = Console(highlight=False)
    positions = range(len(found["tokens"]))[-last:]
    for at in positions:
        target = found["target_names"][at]
        console.print(Text(f"\nAfter {_quoted(found['tokens'][at])} (position {at})", style="bold"))
        rows = [
            (
                stage,
                _quoted(found["names"][i][at]),
                f"{found['probability'][i][at][0]:.3f}",
                f"{found['target_probability'][i][at]:.3f}",
                f"{found['rank'][i][at]:,}",
                f"{found['kl'][i][at]:.2f}",
                f"{found['entropy'][i][at]:.2f}",
            )
            for i, stage in enumerate(found["stages"])
        ]
        named = f"p({_quoted(target)})"
        _table(console, "", ("after", "top token", "p", named, "rank", "KL to the end, nats", "entropy"), rows)


def _quoted(text: str) -> str:
    """A token with its spaces visible."""
    return repr(text)


def _table(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if title:
        console.print(Text(f"\n{title}", style="italic"))
    drawn = Table(box=None, header_style="bold", padding=(0, 2, 0, 0), pad_edge=False)
    for i, name in enumerate(columns):
        number = bool(rows) and all(_number(row[i]) for row in rows)
        drawn.add_column(Text(name), justify="right" if number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    console.print(drawn)


def _number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").lstrip("-").isdigit()
