"""Neurons of MLPs as nodes: what each does to the metric, and through which edges.

scores = cm.neurons.scores(model, task)     # every neuron: change of the metric when it is ablated, to first order
edges = cm.neurons.edges(model, task)       # the strongest of all edges between neurons, heads, embedding, logits
apart = cm.neurons.take_apart(model, task)  # the model with its strongest neurons as nodes: circuits of them run on it
"""

from circuitome.neurons.neuron_edges import NeuronEdges, edges
from circuitome.neurons.neuron_scores import NeuronScores, scores
from circuitome.neurons.node_graph import graph_scores
from circuitome.neurons.nodes import DescribedNeuron, describe, take_apart

__all__ = [
    "DescribedNeuron",
    "NeuronEdges",
    "NeuronScores",
    "describe",
    "edges",
    "graph_scores",
    "scores",
    "take_apart",
]
