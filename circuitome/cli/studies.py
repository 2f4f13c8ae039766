"""One command for each study, made from its settings: fields are options, the lines below them the help."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from inspect import Parameter as Kind
from inspect import Signature
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from circuitome.cli.app import app
from circuitome.cli.progress import duration, watched
from circuitome.studies.catalog import GROUPS, STUDIES
from circuitome.studies.options import parameters
from circuitome.studies.settings import RUN, Flag, Settings
from circuitome.studies.study import Study


@dataclass(frozen=True, kw_only=True)
class Frame:
    """Where a run goes and how it is shown; the same for every study."""

    out: Path | None = None
    """Folder of the run; a name under runs/ by default."""
    resume: Flag = False
    """Go on with a run that was stopped."""
    dry_run: Flag = False
    """Print passes, operations, seconds and memory, and stop."""
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False
    """Print JSON in place of tables."""


class Command:
    """The function behind a study's command: its positional arguments, its settings, the frame.

    What it takes is made when its options or their help are needed: reading them from all studies' files takes longer
    than all else that the list of commands needs.
    """

    def __init__(self, study: Study) -> None:
        self.study, self.__name__, self.__doc__ = study, study.name.replace(" ", "_"), study.settings.__doc__

    def __call__(self, *args: str, settings: Settings | None = None, frame: Frame | None = None) -> None:
        """Do the study."""
        given: dict[str, Any] = dict(zip(self.study.settings.arguments, args, strict=False))
        _perform(self.study, replace(settings or self.study.settings(), **given), frame or Frame())

    @cached_property
    def __signature__(self) -> Signature:
        framed = Annotated[Frame, Parameter(name="*", group=RUN)]
        frame = Kind("frame", Kind.KEYWORD_ONLY, default=Frame(), annotation=framed)
        return Signature([*parameters(self.study.settings), frame])

    @property  # cyclopts reads types from here; mypy knows it as a plain attribute
    def __annotations__(self) -> dict[str, Any]:  # type: ignore[override]
        return {name: parameter.annotation for name, parameter in self.__signature__.parameters.items()}


def _perform(study: Study, settings: Settings, frame: Frame) -> None:
    from circuitome.cli.listing import print_run
    from circuitome.studies.frame import cost, perform

    if frame.dry_run:
        with watched() as progress:
            estimate = cost(study, settings, progress)
        _print_cost(study, settings, estimate, frame.as_json)
        return
    with watched() as progress, stoppable(study, settings, frame):
        run, folder = perform(study, settings, out=frame.out, resume=frame.resume, progress=progress)
    print_run(run, folder, frame.as_json)
    if not study.holds(settings, run.manifest):
        raise SystemExit(3)


@contextmanager
def stoppable(study: Study, settings: Settings, frame: Frame) -> Iterator[None]:
    """Inside, an interruption says how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        from circuitome.runs.store import partial_of
        from circuitome.studies.frame import default_folder

        partial = partial_of(frame.out or default_folder(study, settings))
        if not partial.is_dir():
            raise
        print(f"Stopped; {partial} holds what was done. Repeat the command with --resume to go on.", file=sys.stderr)
        raise SystemExit(130) from None


def _print_cost(study: Study, settings: Settings, estimate: Any, as_json: bool) -> None:
    from circuitome.studies.settings import command_line

    line = command_line(study.name, settings)
    if as_json:
        print(json.dumps({"command": line, **asdict(estimate)}))
        return
    print(f"{line} would")
    for kind, count in estimate.passes.items():
        print(f"  run {count:>7,.6g} {kind} passes over {estimate.texts:,} texts")
    seconds = duration(estimate.seconds)
    if estimate.operations:
        print(f"  compute about {amount(estimate.operations)}: operations of matrix products and attention")
    notes = "".join(f", {name} {value:,}" for name, value in estimate.notes.items())
    print(f"  take about {seconds} and {estimate.bytes / 1e9:.1f} GB{notes}")
    print("Nothing was written.")


def amount(operations: float) -> str:
    """Operations in the largest unit that they fill, such as 1.2 PFLOP."""
    unit = min(7, max(1, int(math.log10(operations)) // 3))
    return f"{operations / 1000**unit:.3g} {'kMGTPEZ'[unit - 1]}FLOP"


for _name, _about in GROUPS.items():
    app.command(App(name=_name, help=_about))
for _study in STUDIES.values():
    *_group, _last = _study.name.split()
    (app[_group[0]] if _group else app).command(Command(_study), name=_last)
