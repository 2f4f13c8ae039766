"""The attribution graph of one prompt: which neurons, at which tokens, make a prediction, in a model held linear.

graph = cm.attribution_graph(model, "The capital of France is")
graph.units()[:10]                                      # the neurons with most influence
graph.incoming("m24.n1005@4")                           # what makes one of them
"""

from circuitome.attribution_graphs.checks import GraphChecks, SwitchedOff, check_graph
from circuitome.attribution_graphs.exchange import feature_details, feature_number, graph_json, group_name, node_id
from circuitome.attribution_graphs.groups import grouped
from circuitome.attribution_graphs.loadings import AttentionPlace, HeadLoadings, attention_places, head_loadings
from circuitome.attribution_graphs.qk import QKAttribution, attention_of
from circuitome.attribution_graphs.reading import read_graph
from circuitome.attribution_graphs.result import AttributionGraph, GraphNode
from circuitome.attribution_graphs.within import within_shares

__all__ = [
    "AttentionPlace",
    "AttributionGraph",
    "GraphChecks",
    "GraphNode",
    "HeadLoadings",
    "QKAttribution",
    "SwitchedOff",
    "attention_of",
    "attention_places",
    "check_graph",
    "feature_details",
    "feature_number",
    "graph_json",
    "group_name",
    "grouped",
    "head_loadings",
    "node_id",
    "read_graph",
    "within_shares",
]
