"""Settings are commands: the line that repeats a run gives the same settings again, for every study."""

import shlex
import types
from dataclasses import fields
from typing import Annotated, Literal, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitome.cli.main import app
from circuitome.studies.catalog import STUDIES
from circuitome.studies.options import field_line
from circuitome.studies.settings import command_line

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=("C",)), min_size=1, max_size=8)
NAME = TEXT.map(str.strip).filter(lambda text: text and "," not in text)
NOT_AN_OPTION = TEXT.filter(lambda text: not text.startswith("-"))
PLAIN = {
    bool: st.booleans(),
    int: st.integers(-(10**9), 10**9),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: TEXT,
}


def values(hint):
    """All values of a field."""
    if get_origin(hint) is Annotated:
        return values(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return st.one_of(*(st.none() if kind is type(None) else values(kind) for kind in get_args(hint)))
    if get_origin(hint) is tuple:
        inside, *more = get_args(hint)
        if more == [...]:
            return st.lists(NAME if inside is str else PLAIN[inside], max_size=3).map(tuple)
        return st.tuples(*[NOT_AN_OPTION] * (1 + len(more)))
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    return PLAIN[hint]


@st.composite
def asked(draw, study):
    """Settings of a study, by field."""
    hints = get_type_hints(study.settings, include_extras=True)
    names = [field.name for field in fields(study.settings)]
    given = {name: draw(values(hints[name])) for name in names if draw(st.booleans())}
    if given.get("max_memory") is not None:
        given["max_memory"] = abs(given["max_memory"]) + 1
    given |= {name: draw(NOT_AN_OPTION) for name in study.settings.arguments}
    return given


@pytest.mark.parametrize("name", STUDIES)
@given(data=st.data())
@settings(max_examples=5, deadline=None, database=None)
def test_the_line_that_repeats_a_run_gives_the_same_settings(name, data):
    study = STUDIES[name]
    wanted = study.settings(**data.draw(asked(study)))
    line = command_line(name, wanted)
    _, bound, _ = app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
    found = bound.kwargs.get("settings", study.settings())
    assert bound.args == tuple(getattr(wanted, name) for name in study.settings.arguments)
    for field in fields(study.settings):
        if field.name not in study.settings.arguments:
            assert getattr(found, field.name) == getattr(wanted, field.name), line


@pytest.mark.parametrize("name", STUDIES)
def test_every_option_has_its_line_of_help(name):
    kind = STUDIES[name].settings
    missing = [field.name for field in fields(kind) if not field_line(kind, field.name)]
    assert not missing and (STUDIES[name].settings.__doc__ or "").strip()
