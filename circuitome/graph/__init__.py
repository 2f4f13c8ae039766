"""What a circuit is: graph, edge sets, scores. No model, no hooks."""

from circuitome.graph.circuit import Circuit as Circuit
from circuitome.graph.graph import Graph as Graph
from circuitome.graph.nodes import NodeScores as NodeScores
from circuitome.graph.scores import EdgeScores as EdgeScores
