"""The one table of studies: command name to study."""

from circuitome.studies import find, measure
from circuitome.studies.study import Study

STUDIES: dict[str, Study] = {study.name: study for study in (find.STUDY, measure.STUDY)}
"""By name, in the order of the help page."""
