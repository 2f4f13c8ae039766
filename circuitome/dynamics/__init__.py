"""How circuits are acquired: training watched from the inside, onsets of sudden changes, syntax in attention.

found = cm.dynamics.onset(steps, losses)                   # the step of the sudden change, and whether it is one
trees = cm.dynamics.read_trees("en_ewt-ud-dev.conllu")     # or cm.dynamics.grammar_trees(200)
parse = cm.dynamics.syntax(model, trees)                   # which arcs the attention of single heads finds
pairs = cm.dynamics.pair_scores(model, cm.dynamics.grammar_pairs(50))
grown = cm.dynamics.develop(model, stream, schedule, measures)  # all of that at steps of a training
"""

from circuitome.dynamics.arcs import Syntax, syntax
from circuitome.dynamics.checkpoint_series import series
from circuitome.dynamics.development import Development, develop
from circuitome.dynamics.freezing import Freezing
from circuitome.dynamics.grammar import MinimalPair, grammar_pairs, grammar_trees
from circuitome.dynamics.grammar_stream import GrammarStream
from circuitome.dynamics.interventions import AttentionPenalty, behind_copies, keeping_largest, previous_token
from circuitome.dynamics.measures import MEASURES, Measures, two_nn
from circuitome.dynamics.minimal_pairs import PairScores, pair_scores, read_pairs
from circuitome.dynamics.onsets import Onset, onset, precedes
from circuitome.dynamics.recipes import Recipe, python_reference, recipe
from circuitome.dynamics.small_models import grammar_tokenizer, small_model
from circuitome.dynamics.small_tasks import agreement, repeats, watched_tasks
from circuitome.dynamics.task_circuits import TaskCircuit, TaskCircuits, task_circuit
from circuitome.dynamics.trees import Tree, read_trees, tokens_of_words

__all__ = [
    "MEASURES",
    "AttentionPenalty",
    "Development",
    "Freezing",
    "GrammarStream",
    "Measures",
    "MinimalPair",
    "Onset",
    "PairScores",
    "Recipe",
    "Syntax",
    "TaskCircuit",
    "TaskCircuits",
    "Tree",
    "agreement",
    "behind_copies",
    "develop",
    "grammar_pairs",
    "grammar_tokenizer",
    "grammar_trees",
    "keeping_largest",
    "onset",
    "pair_scores",
    "precedes",
    "previous_token",
    "python_reference",
    "read_pairs",
    "read_trees",
    "recipe",
    "repeats",
    "series",
    "small_model",
    "syntax",
    "task_circuit",
    "tokens_of_words",
    "two_nn",
    "watched_tasks",
]
