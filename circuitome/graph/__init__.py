"""What a circuit is: graph, edge sets, scores. No model, no hooks."""
