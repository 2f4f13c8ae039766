"""Where heads attend over the tokens of one prompt: queries down, keys across, darker for more."""

from typing import Any

from circuitome.present import formats
from circuitome.present.assets import rendered
from circuitome.present.blocks import Attention, Number

CELL, LETTER, SHOWN = (9.0, 20.0), 6.6, 14
"""Smallest and largest cell, width of a letter, and letters of a token that are written."""
WIDEST = 520.0
"""What the cells of a head take up at most, unless they would become too small to see."""


def svg(block: Attention, head: int) -> str:
    """The attention of one of the block's heads, colours as CSS variables of the page."""
    name, pattern = block.heads[head]
    tokens = [formats.visible(token)[:SHOWN] for token in block.tokens]
    cell = min(CELL[1], max(CELL[0], WIDEST / max(1, len(tokens))))
    room = LETTER * max(map(len, tokens), default=1) + 12
    marks = [
        (i, j, round(value, 3), f"{block.tokens[i]} attends to {block.tokens[j]}: {formats.percent(value)}")
        for i, row in enumerate(pattern)
        for j, share in enumerate(row)
        if (value := _share(share))
    ]
    return rendered(
        "attention.svg.j2", name=name, tokens=tokens, marks=marks, cell=cell, room=room, side=cell * len(tokens)
    )


def together(block: Attention) -> str:
    """The attention of all the block's heads, three in a row, as one drawing."""
    parts = [str(svg(block, head)) for head in range(len(block.heads))]
    if len(parts) == 1:
        return parts[0]
    side = float(parts[0].partition('width="')[2].partition('"')[0]) if parts else 0.0
    across, down = min(3, len(parts)), -(-len(parts) // 3)
    placed = [
        part.replace("<svg ", f'<svg x="{side * (i % 3):.1f}" y="{side * (i // 3):.1f}" ', 1)
        for i, part in enumerate(parts)
    ]
    size = f'width="{side * across:.1f}" height="{side * down:.1f}" viewBox="0 0 {side * across:.1f} {side * down:.1f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(placed)}</svg>'


def script_data(block: Attention) -> dict[str, Any]:
    """What the page's view works on: shares with four decimals."""
    heads = [
        (name, [[None if value is None else round(value, 4) for value in row] for row in pattern])
        for name, pattern in block.heads
    ]
    return {"tokens": block.tokens, "heads": heads}


def _share(value: Number) -> float:
    """A share of attention that can be seen, else 0."""
    known = formats.finite(value) or 0.0
    return known if known >= 0.005 else 0.0
