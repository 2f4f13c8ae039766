"""Every public function has an example (`>>>`), and every example in a docstring gives what it says."""

import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest
import torch
from other_device import other_device

import circuitome
import circuitome as cm

SPACES = (
    *(cm, cm.tasks, cm.attribution_graphs, cm.causal, cm.dynamics, cm.features, cm.heads, cm.neurons, cm.training),
    *(cm.applications, cm.weights, cm.ground_truth),
)
"""Where public names are looked up."""
GIVEN = {
    *(
        "Model",
        "Curve",
        "EffectMap",
        "Estimate",
        "Faithfulness",
        "OpenedRun",
        "RetrievalScores",
        "RouteGraph",
        "Verdict",
    ),
    *("Atlas", "Copying", "HeadScore", "Induction", "Repeated", "MaskCheck", "NeedlePrompt", "SinkMass", "Explanation"),
    *("MlpExplanation", "DescribedNeuron", "NeuronEdges", "NeuronScores"),
    *(
        "Census",
        "Deactivation",
        "Example",
        "LanguageNeurons",
        "NeuronContext",
        "NeuronTokens",
        "OffEffect",
        "OutputLanguage",
    ),
    *("OwnTokens", "Windows"),
    *("Trained", "Quality", "Fit", "Place", "FeatureScores", "FeatureSubspace", "Dictionary", "CrossLayer"),
    *("Features", "Fired", "RoleVerdict", "ConvNet", "Expanded", "Factored", "Composition", "Lens", "LogitAttribution"),
    *("AttentionPlace", "AttributionGraph", "GraphChecks", "GraphNode", "HeadLoadings", "QKAttribution", "SwitchedOff"),
    *("BlockParts", "CircuitDistance", "Pruned", "Unlearned", "Subclone", "Distillation", "HeadPair", "Curves"),
    *("Development", "Measures", "MinimalPair", "Onset", "PairScores", "Recipe", "Syntax", "Tree"),
    *("TaskCircuit", "TaskCircuits"),
    *("Training", "Rows", "TextStream", "RepeatedStream", "DrawnStream", "MixedStream", "MaskedStream"),
    *("AccuracyMap", "Alignment", "CausalModel", "Joint", "Located", "Subspace", "TokenPairs", "Tokens"),
}
"""Public classes that functions give, or that users do not make: the example is that of the function."""
MODULES = [info.name for info in pkgutil.walk_packages(cm.__path__, "circuitome.") if "__main__" not in info.name]
EXAMPLES = [
    test
    for name in MODULES
    for test in doctest.DocTestFinder().find(
        importlib.import_module(name), extraglobs={"cm": cm, "torch": torch, "circuitome": circuitome}
    )
    if test.examples
]


def public_names() -> dict[str, object]:
    """Functions and classes by how they are written: cm.eap, cm.tasks.ioi."""
    return {
        f"{space.__name__.replace('circuitome', 'cm').replace('validation.', '')}.{name}": thing
        for space in SPACES
        for name in (cm.__all__ if space is cm else vars(space))
        if callable(thing := getattr(space, name)) and not name.startswith("_")
        if not isinstance(thing, ModuleType) and getattr(thing, "__module__", "").startswith("circuitome.")
    }


def test_every_public_function_has_an_example():
    names = {name: thing for name, thing in public_names().items() if name.split(".")[-1] not in GIVEN}
    assert len(names) > 80
    assert [name for name, thing in names.items() if ">>>" not in (inspect.getdoc(thing) or "")] == []


def test_what_functions_give_is_a_public_class():
    """So that a name that is mistyped, or gone, does not stay in the list of exceptions."""
    assert {name.split(".")[-1] for name, thing in public_names().items() if inspect.isclass(thing)} >= GIVEN


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_gives_what_it_says(example, smollm2, monkeypatch):
    load = cm.load
    monkeypatch.setattr(
        cm, "load", lambda name, **k: smollm2 if name == smollm2.name else load(name, **k), raising=False
    )
    assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_example_gives_the_same_on_another_device(example, monkeypatch):
    """Nothing is made on the CPU that is needed on the model's device."""
    if any("smollm2" in part.source for part in example.examples):
        pytest.skip("the language model is not moved, which takes long")
    with other_device(cm.load, monkeypatch):
        assert doctest.DocTestRunner().run(example, clear_globs=False).failed == 0
