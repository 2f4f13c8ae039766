"""What the neurons of an explained circuit, and the strongest neurons of its MLPs, fire on in a census."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import circuitome as cm
from circuitome.errors import InputError, RunError
from circuitome.present import formats
from circuitome.present.blocks import Cell, Table, table

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting
    from circuitome.studies.context import Context

TOKENS, STRONGEST = 5, 3
"""Tokens that a neuron is said to fire on, and neurons that are named of an MLP."""
COLUMNS = (
    ("active", "percent"),
    ("fires most on", "text"),
    ("largest at", "text"),
    ("position", "text", None, "", "", False),
)
"""What a census says of a neuron."""


def census_of(run: str | None, context: "Context") -> "cm.neurons.Census | None":
    """The census of a run on the same model; None where no run is given.

    Raises `RunError` for a run of another kind or model, `InputError` where the circuit has neither neurons nor MLPs.
    """
    if run is None:
        return None
    from circuitome.models.loading import weights_hash

    opened, model = cm.open(run), context.reopened.model
    census = opened.census
    if opened.manifest["model"]["weights_hash"] != weights_hash(model):
        raise RunError(
            f"{run} is a census of {opened.manifest['model']['name']}, not of {model.name} with its weights."
        )
    if not parts(context.reopened.circuit, "neuron") + parts(context.reopened.circuit, "mlp"):
        raise InputError("The circuit has neither neurons nor MLPs, so --census can say nothing about it.")
    return census


def parts(circuit: "cm.Circuit", kind: str) -> list[str]:
    """Names of the circuit's nodes of one kind."""
    return [name for name in circuit.nodes if cm.Node.parse(name).kind == kind]


def fires_on(census: "cm.neurons.Census | None", context: "Context", setting: "Setting") -> list[Table]:
    """Tables of the circuit's neurons and of its MLPs' strongest ones; nothing without a census."""
    if census is None:
        return []
    circuit, model = context.reopened.circuit, context.reopened.model
    active = (
        f"On {census.tokens:,} tokens of the census's texts. Active: {census.rule}. Behind a token stands on what "
        "share of its occurrences the neuron is active, known where few tokens explain it; largest at: the tokens of "
        "its largest activations."
    )
    tables = list[Table]()
    if names := parts(circuit, "neuron"):
        rows = [(name, *said(model, census, name)) for name in names]
        tables.append(table("What its neurons fire on", (("neuron", "node"), *COLUMNS), rows, note=active, top=12))
    if mlps := parts(circuit, "mlp"):
        columns = (("neuron", "node"), ("effect", "signed", 3, setting.task.unit), *COLUMNS)
        note = (
            f"Of each MLP of the circuit the {STRONGEST} neurons that change the metric most when they are ablated, to "
            f"first order along the path from ablated to clean embeddings; negative helps. {active}"
        )
        strongest = ((name, effect, *said(model, census, name)) for name, effect in of_mlps(setting, mlps))
        tables.append(table("What the neurons of its MLPs fire on", columns, strongest, note=note, top=12))
    return tables


def of_mlps(setting: "Setting", mlps: Sequence[str]) -> list[tuple[str, float]]:
    """The strongest neurons of some MLPs, with the change of the metric when they are ablated, strongest first."""
    scores = cm.neurons.scores(setting if setting.ablation != "mean" else setting.but(ablation="corrupted"))
    named = list[tuple[str, float]]()
    for name in mlps:
        layer = cm.Node.parse(name).layer
        order = scores.values[layer].abs().argsort(descending=True, stable=True)[:STRONGEST].tolist()
        named += [(f"m{layer}.n{i}", float(scores.values[layer, i])) for i in order]
    return sorted(named, key=lambda pair: -abs(pair[1]))


def said(model: "cm.Model", census: "cm.neurons.Census", name: str) -> tuple[Cell, ...]:
    """What a census says of a neuron, under `COLUMNS`."""
    row: dict[str, Any] = census.row(name)
    grams = (
        f"{formats.quoted(model.decode(list(gram)))} {count / often:.0%}"
        for gram, count, often in census.fires_on(name)[:TOKENS]
    )
    tokens = dict.fromkeys(example.ids[example.at] for example in census.examples(name))
    largest = ", ".join(formats.quoted(model.decode([token])) for token in list(tokens)[:TOKENS])
    return row["active"], ", ".join(grams), largest, row["position"]
