"""The one table of studies: command name to study. A study's command has the name of its file.

A command of two words, such as `dictionary train`, stands in a group of commands named by the first.
"""

from importlib import import_module

from circuitome.studies.study import Study

NAMES = (
    *("see", "graph", "check", "find", "measure", "patch", "path", "compare", "known", "validate", "explain"),
    *("heads", "neurons", "neuron", "languages", "steer", "induction", "retrieval", "stream", "trace", "routes"),
    *("weights", "lens", "conv", "diff", "align", "sweep", "syntax", "develop", "series"),
    *("dictionary train", "dictionary check", "features"),
    *("edit", "prune", "merge", "subclone", "distil", "data"),
)
"""In the order of the help page."""
GROUPS = {"dictionary": "Train sparse dictionaries of a model's activations, and check them."}
"""The first words of commands of two words: what a help page says of them."""
STUDIES: dict[str, Study] = {
    name: import_module(f"circuitome.studies.{name.replace(' ', '_')}").STUDY for name in NAMES
}
"""By name, in that order."""
