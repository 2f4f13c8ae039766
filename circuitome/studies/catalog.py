"""The one table of studies: command name to study."""

from circuitome.studies import (
    compare,
    conv,
    explain,
    find,
    heads,
    induction,
    known,
    lens,
    measure,
    patch,
    path,
    retrieval,
    routes,
    stream,
    trace,
    validate,
    weights,
)
from circuitome.studies.study import Study

_ROOMS = (
    find,
    measure,
    patch,
    path,
    compare,
    known,
    validate,
    explain,
    heads,
    induction,
    retrieval,
    stream,
    trace,
    routes,
    weights,
    lens,
    conv,
)
STUDIES: dict[str, Study] = {room.STUDY.name: room.STUDY for room in _ROOMS}
"""By name, in the order of the help page."""
