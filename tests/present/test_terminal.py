"""The terminal: nothing broken, cut off or unsaid at any width, readable without colour, whatever the texts are."""

import math
import re
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from documents import CONTROL, HOSTILE, causal_map, circuit_map, every, heat_map, hostile, lines, roles, routes, table
from rich.console import Console

from circuitome.present.blocks import AnyBlock, Attention, Bars, Column, Document, Lede, Note, Scatter, Table, Tokens
from circuitome.present.terminal import print_block, show
from circuitome.present.text_tables import wrapped

BLOCKS = {f"{block.block} {i}": block for i, block in enumerate(every().blocks)}


def shown(block: AnyBlock | Document, width: int = 100) -> str:
    """What a terminal without colours shows."""
    out = StringIO()
    console = Console(width=width, file=out, color_system=None, legacy_windows=False)
    if isinstance(block, Document):
        show(block, console)
    else:
        print_block(block, console)
    return out.getvalue()


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.split() and line.split()[0] == start)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_no_line_is_too_long_and_no_word_is_broken(block: AnyBlock, width: int) -> None:
    text, wide = shown(block, width), shown(block, 1000)
    assert max(map(len, text.splitlines())) <= width
    whole = set(re.findall(r"[\w.]+", wide)) | {"more", "rows", "column", "columns", "Also", "in", "the", "report"}
    left_out = block.block in ("heat map", "table")
    assert set(re.findall(r"[\w.]+", text)) <= whole or left_out
    assert not [row for row in text.splitlines() if row and not set(row) - set(" .\N{MIDDLE DOT}")]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_tables_break_at_spaces_only_and_say_what_they_leave_out(width: int) -> None:
    text = shown(table(3), width)
    words = set(re.findall(r"[^\s]+", text))
    for cell in ("a0.h1", "1,234", "[50,", "70]", "previous", "a11.h0.q,"):
        assert cell in words
    left = " ".join(text.split())
    assert ("the column 'what it does'" in left) == ("attends" not in words)
    assert ("the column 'change'" in left) == ("+0.500" not in words)
    estimate = "\u22120.2500 [\u22120.5000, 0.1000]"
    assert estimate in text  # a number and its interval stay on one line


def test_long_texts_stand_below_their_rows_before_numbers_move_to_a_further_table() -> None:
    columns = (Column(name="method"), *(Column(name=f"{n}", style="estimate") for n in range(4)), Column(name="note"))
    words = "why this method stopped before it reached the goal that was set"
    rows = tuple((f"eap {i}", *[(0.5, 0.4, 0.6)] * 4, words) for i in range(2))
    text = shown(Table(columns=columns, rows=rows), 80)
    assert text.count("    note: why this") == 2 and text.count("method") == 4  # the heading comes twice, the note too
    assert len(re.findall(r"0\.5000 \[0\.4000, 0\.6000\]", text)) == 8


def test_columns_without_words_take_no_room() -> None:
    block = Table(columns=(Column(name=""), Column(name="", style="number"), Column(name="a")), rows=(("", "", "b"),))
    assert shown(block).split() == ["a", "b"]
    assert shown(replace(block, rows=())).split() == ["a"]


def test_rows_beyond_the_first_are_announced() -> None:
    text = shown(table(12, top=5), 200)
    assert "Also in the report: 7 more rows." in text and text.count("previous token") == 5
    assert text.count("\N{HEAVY CHECK MARK}") == 2


@pytest.mark.parametrize(
    ("text", "lines_"),
    [
        ("a bc def", ["a bc", "def"]),
        ("abcdefgh", ["abcdefgh"]),
        ('x " Mary" y', ["x", '" Mary"', "y"]),
        ("", [""]),
    ],
)
def test_wrapping(text: str, lines_: list[str]) -> None:
    assert wrapped(text, 5) == lines_


def test_sign_size_and_certainty_can_be_read_without_colour() -> None:
    text = shown(heat_map())
    assert line(text, "a1").split() == ["a1", "-9*", "+2"]
    assert not [row for row in text.splitlines() if row.startswith(("a0 ", "a2 "))]  # nothing of a tenth in them
    assert "tenths of 2.000 logits, 50" in text and "1 of 3 rows are shown" in " ".join(text.split())
    assert "*: the 95\xa0% interval leaves out 0" in " ".join(text.split(" "))
    assert line(text, "a1.h1").split() == ["a1.h1", "\u22122.000", "[\u22122.600,", "\u22121.400]", "\u221250", "%"]


def test_colours_are_there_where_they_can_be() -> None:
    console = Console(width=100, file=StringIO(), color_system="truecolor", force_terminal=True)
    print_block(heat_map(), console)
    assert "48;2;27;108;176m-9*" in console.file.getvalue()  # type: ignore[attr-defined]


def test_layers_go_upwards() -> None:
    values = ((1.0,) * 5,) * 3
    text = shown(heat_map(values=values))
    assert text.index("\na2 ") < text.index("\na1 ") < text.index("\na0 ")


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("shape", [(270, 14), (2, 120)])
def test_large_maps_keep_their_strongest_rows_and_columns(shape: tuple[int, int], width: int) -> None:
    block = heat_map(*shape, top=0)
    full = replace(block, values=tuple(tuple(1.0 if v is None else v + 1 for v in row) for row in block.values))
    text = shown(full, width)
    rows = [row for row in text.splitlines() if re.match(r" *a\d+ ", row)]
    assert max(map(len, rows)) <= width and len(rows) == min(60, shape[0])
    assert ("60 of 270 rows" in " ".join(text.split())) == (shape[0] > 60)


@pytest.mark.parametrize(("value", "words"), [(0.0, "All values are 0"), (None, "There are no values")])
def test_maps_without_values_say_so(value: float | None, words: str) -> None:
    assert words in shown(heat_map(values=((value,) * 5,) * 3))


def test_the_circuit_has_a_legend_and_its_strongest_edges() -> None:
    text = shown(circuit_map(), 80)
    assert line(text, "1").split()[-2:] == ["@", "."]  # a1.h3 is the strongest node, m1 the weakest
    assert ". : - = + * # % @" in " ".join(text.split())
    assert line(text, "a1.h3").split()[:3] == ["a1.h3", "logits", "\u22121.0000"]
    wide = circuit_map(shape=replace(circuit_map().shape, heads=64, kv_heads=32), edges=circuit_map().edges[:2])
    assert "of 64 heads are shown" in " ".join(shown(wide, 80).split())


def test_few_lines_have_their_sizes_down_and_many_across() -> None:
    few, many = shown(lines(2), 120), shown(lines(5), 200)
    assert line(few, "100").split() == ["100", "0.400", "[0.350,", "0.450]", "0.500", "[0.450,", "0.550]"]
    assert "line 4   0.400 [0.350, 0.450]" in many and "this circuit: 7" in many
    course = shown(lines(1, tuple(range(1, 41))), 80)
    assert "▁" in course and "█" in course and "bars from 0.000 to 7.800" in " ".join(course.split())


def test_a_route_is_drawn_with_its_tokens_and_edges() -> None:
    text = shown(routes(), 80)
    assert '" Mary": 5 edges at threshold 0.04: 1 between tokens, 1 from MLPs.' in text
    assert line(text, "x2").split() == ["x2", "@m"]
    assert line(text, "x1@0").split() == [
        "x1@0",
        '"Mary"',
        "mid1@1",
        '"',
        'John"',
        "0.300",
        *["h1", "0.150", "h0", "0.150"],
    ]


def test_a_causal_model_is_a_table_of_variables_and_places() -> None:
    text = " ".join(shown(causal_map(), 120).split())
    assert "position first, S2 x18@S2 0.95 [0.90, 1.00] has a place" in text
    assert "name position, first, second a24.h1@end 0.60 [0.50, 0.70] not above controls" in text


def test_roles_and_where_they_lead() -> None:
    text = " ".join(shown(roles(), 120).split())
    assert "duplicate token S2 a0.h1, a1.h1" in text and "S-inhibition (v)" in text and "logits (" not in text


def test_folded_and_page_only_blocks_are_left_to_the_report() -> None:
    text = shown(every(), 100)
    assert "Patching MLPs" not in text and "Also in the report: 2 folded parts." in text
    assert "Again:  circuitome find ioi --model toy" in text and "Report: runs/ioi/report.html" in text
    assert "negative helps" in text and "The model cannot do the task." in text
    assert "x" * 5 not in shown(Document(title="t", command="c", sign="", blocks=(Lede(text="x" * 9, where="page"),)))


def test_texts_are_shown_as_they_are_and_cannot_steer_the_terminal() -> None:
    text = shown(hostile("[/] [red]x[/red] [bold"), 400)
    assert text.count("[/] [red]x[/red] [bold") >= 40
    assert "<script>alert(1)</script>" in shown(hostile(HOSTILE), 400)
    assert not set("\x00\x1b\ud800") & set(shown(hostile(CONTROL), 80))


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_missing_numbers_are_said(bad: Any) -> None:
    blocks = (
        Bars(labels=("a",), values=(bad,)),
        Scatter(x="x", y="y", points=((1.0, 2.0, "p"),)),
        Tokens(lines=((("a", bad), ("b", 1.0)),)),
        Attention(tokens=("a", "b"), heads=(("a0.h0", ((bad, bad), (bad, bad))),)),
        Note(text="n"),
        replace(table(1), rows=(("a", None, bad, bad, (bad, None, None), bad, None, None),)),
    )
    text = shown(Document(title="t", command="c", sign="", blocks=blocks), 120)
    assert "n/a" in text and not re.search(r"\b(nan|inf)\b", text)
