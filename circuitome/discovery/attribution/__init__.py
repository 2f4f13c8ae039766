"""Gradient-based scores of edges and nodes, with the contraction behind them."""
