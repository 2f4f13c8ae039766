"""Blocks survive JSON, and damaged ones are refused with what to do."""

import json
import math

import pytest

from circuitome.errors import RunError
from circuitome.present import blocks
from circuitome.present.stored import document, dumped, loaded
from circuitome.runs.store import Run, plain

SOME = (
    blocks.Lede(text="Found."),
    blocks.Numbers(items=(blocks.Figure(name="share", value=0.5, low=None, style="percent"),)),
    blocks.Table(
        columns=(blocks.Column(name="head", style="node"), blocks.Column(name="score", style="estimate")),
        rows=(("a1.h2", (0.5, 0.25, 0.75)), ("a1.h3", None)),
    ),
    blocks.HeatMap(rows=("a0",), columns=("h0", "h1"), values=((0.5, None),)),
    blocks.Roles(
        classes=(blocks.RoleClass(name="mover", members=("a1.h2",)),), arrows=(("mover", "logits", "v", 1.0),)
    ),
)


def test_blocks_come_back_from_json():
    assert loaded(json.loads(json.dumps(dumped(SOME)))) == SOME


@pytest.mark.parametrize(
    ("damage", "words"),
    [({"block": "sculpture"}, "sculpture"), ({"block": "lede"}, "text"), ({"block": "lede", "text": 3}, "text")],
)
def test_damaged_blocks_are_refused(damage, words):
    with pytest.raises(RunError, match=rf"(?s){words}.*run its command again"):
        loaded([damage])


def test_a_run_of_an_earlier_version_says_what_to_do():
    with pytest.raises(RunError, match=r"keeps no blocks to show\. Run it again: circuitome find ioi"):
        document(Run({"command": "circuitome find ioi", "circuitome": "0.1.0"}, {}))


def test_a_table_takes_columns_as_data():
    last = blocks.Column("note", narrow=False)
    made = blocks.table("Heads", ("head", ("score", "estimate", 3, "logits"), last), [["a0.h1", (1.0, 0.5, 2.0), ""]])
    assert made.columns == (
        blocks.Column("head"),
        blocks.Column("score", style="estimate", decimals=3, unit="logits"),
        last,
    )
    assert made.rows == (("a0.h1", (1.0, 0.5, 2.0), ""),) and made.title == "Heads"


def test_what_json_cannot_hold_becomes_none():
    assert plain({1: (math.nan, 2), "b": [math.inf, {"c": 1.5}]}) == {"1": [None, 2], "b": [None, {"c": 1.5}]}
