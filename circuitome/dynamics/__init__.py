"""How circuits are acquired: training watched from the inside, onsets of sudden changes, syntax in attention.

found = cm.dynamics.onset(steps, losses)                   # the step of the sudden change, and whether it is one
trees = cm.dynamics.read_trees("en_ewt-ud-dev.conllu")     # or cm.dynamics.grammar_trees(200)
parse = cm.dynamics.syntax(model, trees)                   # which arcs the attention of single heads finds
pairs = cm.dynamics.pair_scores(model, cm.dynamics.grammar_pairs(50))
"""

from circuitome.dynamics.arcs import Syntax, syntax
from circuitome.dynamics.grammar import MinimalPair, grammar_pairs, grammar_trees
from circuitome.dynamics.minimal_pairs import PairScores, pair_scores, read_pairs
from circuitome.dynamics.onsets import Onset, onset, precedes
from circuitome.dynamics.trees import Tree, read_trees, tokens_of_words

__all__ = [
    "MinimalPair",
    "Onset",
    "PairScores",
    "Syntax",
    "Tree",
    "grammar_pairs",
    "grammar_trees",
    "onset",
    "pair_scores",
    "precedes",
    "read_pairs",
    "read_trees",
    "syntax",
    "tokens_of_words",
]
