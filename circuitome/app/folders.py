"""The runs in a folder: a list of them, their pages and their files, whoever made them."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from stat import S_ISREG
from typing import Any

from circuitome.errors import RunError
from circuitome.present.assets import asset, script_hash
from circuitome.present.blocks import Note
from circuitome.present.formats import CONTROL
from circuitome.present.page import SCRIPTS, page
from circuitome.present.stored import document
from circuitome.runs.groups import Groups, read_groups, write_groups
from circuitome.runs.store import MANIFEST, Run, read_manifest

SHOWN = 400
"""Letters of a title or a command in the list."""
MOST = 1000
"""Files of a run that are listed."""
LONGEST = 1e12
"""Seconds that no run takes."""


@dataclass
class Folders:
    """The runs below one folder."""

    root: Path
    """The folder."""
    _read: dict[Path, tuple[tuple[int, int], dict[str, Any]]] = field(default_factory=dict)
    _keeping: threading.Lock = field(default_factory=threading.Lock)

    def rows(self) -> list[dict[str, Any]]:
        """What the list shows of each run, the newest first; of a damaged one, what is wrong.

        Raises `RunError` where the folder cannot be read.
        """
        try:
            names = [entry.name for entry in os.scandir(self.root) if not entry.name.startswith(".")]
        except OSError as error:
            raise RunError(f"{self.root} cannot be read: {error.strerror or error}.") from None
        rows = [self._row(name) for name in names if os.path.lexists(self.root / name / MANIFEST)]
        return sorted(rows, key=lambda row: str(row["created"]), reverse=True)

    def changed(self) -> int:
        """Another number when runs came or went; not when one was made anew."""
        with suppress(OSError):
            return self.root.stat().st_mtime_ns
        return 0

    def _row(self, name: str) -> dict[str, Any]:
        try:
            manifest = self.path(name, MANIFEST)
            stat = manifest.stat()
            known = self._read.get(manifest)
            if known is None or known[0] != (stat.st_mtime_ns, stat.st_size):
                known = (stat.st_mtime_ns, stat.st_size), _row_of(self.manifest(name))
                self._read[manifest] = known
            return {"name": name, **known[1]}
        except (RunError, OSError) as error:  # the latter: removed this moment
            return {"name": CONTROL.sub("\ufffd", name), "created": "", "problem": CONTROL.sub("\ufffd", str(error))}

    def path(self, name: str, file: str = ".") -> Path:
        """A file of a run. Raises `RunError` for a name that leads out of the run's folder, or that is not there."""
        folder = self.root / name
        try:
            inside = folder.resolve().parent == self.root.resolve() and "/" not in name and "\\" not in name
            path = (folder / file).resolve()
            fits = inside and folder.is_dir() and path.is_relative_to(folder.resolve()) and path.exists()
            (name + file).encode()
        except (OSError, ValueError, RuntimeError):  # a name that no file can have, or links that go round
            fits = False
        if not fits:
            raise RunError(f"There is no file {file} in a run {name}.")
        return path

    def manifest(self, name: str) -> dict[str, Any]:
        """A run's manifest. Raises `RunError` where it is damaged or too large."""
        return read_manifest(self.path(name, MANIFEST).parent)

    def report(self, name: str) -> str:
        """A run's page, made from its manifest, with the groups kept: what lies in report.html may be anybody's."""
        manifest, kept = self.manifest(name), Groups()
        try:
            shown = document(Run(manifest, {}), self.root / name)
            try:
                kept = read_groups(self.path(name))
            except RunError as error:
                shown = replace(shown, blocks=(Note(text=str(error), level="warning"), *shown.blocks))
            return page(shown, kept)
        except RunError:
            raise
        except Exception as error:  # a manifest may come from anybody, and there is no end to what can be wrong in it
            raise RunError(f"{name} is damaged: its page cannot be made ({error!r}).") from None

    def keep(self, name: str, view: str, kept: Any) -> None:
        """Keep groups and pins, made in a view of a run's page, with the run. Raises `InputError` for what are none."""
        self.path(name, MANIFEST)
        with self._keeping:
            write_groups(self.path(name), view, kept)

    def files(self, name: str) -> list[dict[str, Any]]:
        """Names and sizes of a run's files, without those that go meanwhile and those whose name is no text."""
        folder, found = self.path(name), list[dict[str, Any]]()
        for inside, _, names in os.walk(folder):
            for path in (Path(inside, file) for file in names):
                with suppress(OSError, UnicodeError):
                    stat, shown = path.lstat(), str(path.relative_to(folder))
                    if S_ISREG(stat.st_mode) and shown.encode():
                        found.append({"name": shown, "bytes": stat.st_size})
            if len(found) >= MOST:
                break
        return sorted(found, key=lambda file: str(file["name"]))[:MOST]


def _row_of(manifest: dict[str, Any]) -> dict[str, Any]:
    model, seconds = manifest.get("model"), manifest.get("seconds")
    texts = {name: str(manifest.get(name, ""))[:SHOWN] for name in ("kind", "title", "created", "command")}
    texts["model"] = str(model.get("name", ""))[:SHOWN] if isinstance(model, dict) else ""
    return {
        **{name: CONTROL.sub("\ufffd", text) for name, text in texts.items()},
        "seconds": seconds if isinstance(seconds, int | float) and 0 <= seconds < LONGEST else None,
    }


def sandbox() -> str:
    """The policy of pages of runs: an origin of their own, no network, and no script but the package's, by its hash.

    A script that somebody put into a run's folder does not run.
    """
    hashes = " ".join(f"'sha256-{script_hash(asset(name))}'" for name in SCRIPTS)
    return (
        "sandbox allow-scripts allow-downloads; default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {hashes}; frame-ancestors 'self'; base-uri 'none'; form-action 'none'"
    )
