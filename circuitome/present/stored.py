"""Blocks as plain JSON and back, and a saved run as the document that views show."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, TypeAdapter, ValidationError

from circuitome.errors import RunError
from circuitome.present.blocks import AnyBlock, Block, Document
from circuitome.runs.store import Run

HIDDEN = ("blocks", "results", "prompts")
"""Entries of a manifest that a page shows elsewhere, or not at all."""


@functools.cache
def _adapter() -> Any:  # a TypeAdapter, which runtime type checkers do not know
    return TypeAdapter(tuple[Annotated[AnyBlock, Discriminator("block")], ...])


def dumped(blocks: Sequence[Block]) -> list[dict[str, Any]]:
    """Blocks as plain JSON values."""
    return [asdict(block) for block in blocks]


def loaded(data: Sequence[Mapping[str, Any]]) -> tuple[AnyBlock, ...]:
    """The blocks that `dumped` wrote. Raises `RunError` where the data is damaged or of a later version."""
    try:
        return _adapter().validate_python(data)  # type: ignore[no-any-return]
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RunError(
            f"The blocks of this run cannot be read: {first['msg']} at {place}. It is damaged or was made by another "
            "version of circuitome; run its command again."
        ) from None


def document(run: Run, folder: Path | str = "") -> Document:
    """What a saved run says. Raises `RunError` where its blocks cannot be read, or it has none."""
    manifest = run.manifest
    if "blocks" not in manifest:
        raise RunError(
            f"This run was made by circuitome {manifest.get('circuitome', 'of an earlier version')} and keeps no "
            f"blocks to show. Run it again: {manifest.get('command', 'its command is not recorded')}"
        )
    return Document(
        title=manifest["title"],
        command=manifest["command"],
        sign=manifest["sign"],
        blocks=loaded(manifest["blocks"]),
        facts={name: value for name, value in manifest.items() if name not in HIDDEN},
        folder=str(folder),
    )
