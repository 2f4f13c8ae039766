"""Causal abstraction: does a model compute what one thinks it computes, and where are the variables?

causal = cm.causal.model(position=lambda first, S2: ..., answer=lambda position, first, second: ...)
found = cm.causal.align(model, task, causal)                   # every variable at every place of the stream
directions = cm.causal.das(model, task, causal, "x14@end")     # the directions there that hold it
verdict = cm.causal.locate(model, task, causal, "x14@end", held_out)  # beside controls, on other prompts
"""

from circuitome.causal.alignment import AccuracyMap, Alignment, align
from circuitome.causal.causal_model import CausalModel, model
from circuitome.causal.interchanges import interchange
from circuitome.causal.joint_interchange import Joint, joint
from circuitome.causal.located import Located, locate
from circuitome.causal.searches import das
from circuitome.causal.subspaces import Subspace
from circuitome.causal.task_models import boolean, ready
from circuitome.causal.variable_setting import set_variable, value_means, whole

__all__ = [
    "AccuracyMap",
    "Alignment",
    "CausalModel",
    "Joint",
    "Located",
    "Subspace",
    "align",
    "boolean",
    "das",
    "interchange",
    "joint",
    "locate",
    "model",
    "ready",
    "set_variable",
    "value_means",
    "whole",
]
