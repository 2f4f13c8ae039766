"""What `find --stable` says: how many edges come back in which share of draws of prompts, and what they do."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from circuitome.errors import InputError
from circuitome.present.blocks import Block, table
from circuitome.studies.pieces import cell, percent

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting
    from circuitome.studies.methods import Method
    from circuitome.validation.robustness.consensus import StableCircuit


def check_stable(share: float | None, draws: int | None, name: str, method: "Method") -> None:
    """Raises `InputError` for a share or a number of draws that cannot be, or a method that looks at no prompts."""
    if share is None:
        if draws is not None:
            raise InputError("--draws is how often --stable draws the prompts anew; give --stable 0.9 as well.")
        return
    if not 0 < share <= 1:
        raise InputError(f"--stable is the share of draws that an edge comes back in, above 0 up to 1; got {share}.")
    if draws is not None and draws < 2:
        raise InputError(f"--draws must be at least 2, got {draws}.")
    method.refuse_draws(name)


def stable_results(judged: "Setting", stable: "StableCircuit | None") -> dict[str, Any] | None:
    """The draws, and by share of them the number of edges with their faithfulness on the prompts of `judged`."""
    if stable is None:
        return None
    from circuitome.validation.faithfulness.evaluator import Evaluator
    from circuitome.validation.faithfulness.share import evaluate

    circuits = {share: circuit for share, circuit in stable.by_share().items() if len(circuit)}
    measured = evaluate(Evaluator(judged), [*circuits.values(), stable.whole])
    shares = dict(zip(circuits, measured, strict=False))
    told = stable.to_dict()
    for row in told["edges"]:
        at = shares.get(row["share"])
        row["faithfulness"] = None if at is None else at.share.to_dict()
    return {**told, "faithfulness_of_all_prompts": measured[-1].share.to_dict()}


def stable_blocks(found: Mapping[str, Any] | None, where: str) -> Sequence[Block]:
    """A table with a row for each share of the draws; nothing where nothing was drawn."""
    if found is None:
        return ()
    rows = [
        (f"at least {100 * row['share']:g} % of draws", row["edges"], cell(row["faithfulness"]))
        for row in found["edges"]
    ]
    whole = ("all prompts, no draw", found["edges_of_all_prompts"], cell(found["faithfulness_of_all_prompts"]))
    how = "the method ran on each" if found["reruns"] else "each from the scores of its prompts"
    note = f"{found['draws']} draws of the search prompts, {how}. Faithfulness is measured {where}."
    columns = ("edges in", ("edges", "count"), ("faithfulness", "estimate", 3))
    return (table("Edges that come back", columns, [*rows, whole], note=note),)


def stable_sentence(found: Mapping[str, Any] | None) -> str:
    """How often the circuit's edges come back, and what they are taken from; nothing where nothing was drawn."""
    if found is None:
        return ""
    whole = f"the circuit of all prompts has {found['edges_of_all_prompts']:,} edges and recovers "
    return (
        f"These edges come back in at least {100 * found['share']:g} % of {found['draws']} draws of the prompts; "
        f"{whole}{percent(found['faithfulness_of_all_prompts'])}.\n"
    )
