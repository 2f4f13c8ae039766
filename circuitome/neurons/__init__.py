"""Neurons of MLPs as nodes: what each does to the metric, and through which edges; and what each fires on.

scores = cm.neurons.scores(model, task)     # every neuron: change of the metric when it is ablated, to first order
edges = cm.neurons.edges(model, task)       # the strongest of all edges between neurons, heads, embedding, logits
apart = cm.neurons.take_apart(model, task)  # the model with its strongest neurons as nodes: circuits of them run on it
census = cm.neurons.census(model, texts)    # every neuron: how often it is active, on which tokens, where
spoken = cm.neurons.language_neurons(model, {"en": ..., "de": ...})
with cm.neurons.control(model, off=spoken.of("en"), set_to=spoken.means("de")): ...
"""

from circuitome.neurons.counting import Counting, census
from circuitome.neurons.held_neurons import control, random_neurons
from circuitome.neurons.language import LanguageNeurons, language_neurons
from circuitome.neurons.language_effect import Deactivation, OutputLanguage, adding, deactivation, output_language
from circuitome.neurons.neuron_census import Census, Example
from circuitome.neurons.neuron_edges import NeuronEdges, edges
from circuitome.neurons.neuron_examples import NeuronContext, neuron_activations, neuron_context
from circuitome.neurons.neuron_scores import NeuronScores, scores
from circuitome.neurons.node_graph import graph_scores
from circuitome.neurons.nodes import DescribedNeuron, describe, take_apart
from circuitome.neurons.projections import NeuronTokens, OwnTokens, own_tokens, promoted_tokens
from circuitome.neurons.text_loss import OffEffect, off_effect
from circuitome.neurons.text_windows import Windows, packed, windows

__all__ = [
    "Census",
    "Counting",
    "Deactivation",
    "DescribedNeuron",
    "Example",
    "LanguageNeurons",
    "NeuronContext",
    "NeuronEdges",
    "NeuronScores",
    "NeuronTokens",
    "OffEffect",
    "OutputLanguage",
    "OwnTokens",
    "Windows",
    "adding",
    "census",
    "control",
    "deactivation",
    "describe",
    "edges",
    "graph_scores",
    "language_neurons",
    "neuron_activations",
    "neuron_context",
    "off_effect",
    "output_language",
    "own_tokens",
    "packed",
    "promoted_tokens",
    "random_neurons",
    "scores",
    "take_apart",
    "windows",
]
