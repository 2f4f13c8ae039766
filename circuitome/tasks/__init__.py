"""Prompt pairs and metrics: one generator per behaviour, and pairs from a file."""

from collections.abc import Callable

from circuitome.tasks.generators.capitals import capitals as capitals
from circuitome.tasks.generators.docstring import docstring as docstring
from circuitome.tasks.generators.gendered_pronoun import gendered_pronoun as gendered_pronoun
from circuitome.tasks.generators.greater_than import greater_than as greater_than
from circuitome.tasks.generators.induction import induction as induction
from circuitome.tasks.generators.ioi import ioi as ioi
from circuitome.tasks.generators.subject_verb import subject_verb as subject_verb
from circuitome.tasks.metrics import METRICS as METRICS
from circuitome.tasks.metrics import Metric as Metric
from circuitome.tasks.pair_files import from_file as from_file
from circuitome.tasks.pair_files import from_pairs as from_pairs
from circuitome.tasks.task import Pair as Pair
from circuitome.tasks.task import Task as Task
from circuitome.tasks.task import Tokens as Tokens
from circuitome.tasks.task import continuation as continuation
from circuitome.tasks.task import make_pair as make_pair

TASKS: dict[str, Callable[..., Task]] = {
    "ioi": ioi,
    "greater-than": greater_than,
    "gendered-pronoun": gendered_pronoun,
    "docstring": docstring,
    "induction": induction,
    "subject-verb": subject_verb,
    "capitals": capitals,
}
"""Name on the command line -> generator, called as `generator(model, n=64, seed=0)`."""
