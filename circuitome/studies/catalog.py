"""The one table of studies: command name to study. A study's command has the name of its file."""

from importlib import import_module

from circuitome.studies.study import Study

NAMES = (
    *("see", "check", "find", "measure", "patch", "path", "compare", "known", "validate", "explain"),
    *("heads", "neurons", "neuron", "languages", "steer", "induction", "retrieval", "stream", "trace", "routes"),
    *("weights", "lens", "conv", "diff", "align"),
)
"""In the order of the help page."""
STUDIES: dict[str, Study] = {name: import_module(f"circuitome.studies.{name}").STUDY for name in NAMES}
"""By name, in that order."""
