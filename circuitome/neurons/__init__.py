"""Neurons of MLPs as nodes: what each does to the metric, and through which edges.

scores = cm.neurons.scores(model, task)     # every neuron: change of the metric when it is ablated, to first order
edges = cm.neurons.edges(model, task)       # the strongest of all edges between neurons, heads, embedding, logits
"""

from circuitome.neurons.graph_scores import graph_scores
from circuitome.neurons.neuron_edges import NeuronEdges, edges
from circuitome.neurons.neuron_scores import NeuronScores, scores

__all__ = ["NeuronEdges", "NeuronScores", "edges", "graph_scores", "scores"]
