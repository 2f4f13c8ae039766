"""What every study is asked: frozen settings whose fields, with the line below each, are its command's options.

A field's name is its option, underscores as hyphens; its type says how it is read. `Argument` makes a field
a positional argument of the command. Nothing here imports torch, so that `--help` is quick.
"""

import hashlib
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_type_hints

from cyclopts import Group, Parameter, Token
from typing_extensions import override

from circuitome.errors import InputError

if TYPE_CHECKING:
    from circuitome.runs.draw import Origin


def between_commas(read: Callable[[str], Any], kind: str) -> Callable[[Any, Sequence[Token]], tuple[Any, ...]]:
    """A converter that reads values with commas between, from all times that an option was given."""

    def convert(_: Any, tokens: Sequence[Token]) -> tuple[Any, ...]:
        given = ",".join(token.value for token in tokens)
        try:
            return tuple(read(name) for part in given.split(",") if (name := part.strip()))
        except ValueError:
            raise ValueError(f"takes {kind} with commas between, got {given!r}") from None

    return convert


def _size(kind: Any, tokens: Sequence[Token]) -> int:
    return number_of_bytes(tokens[0].value)


MOST_BYTES = 1e18
"""No memory has so many."""


def number_of_bytes(text: str) -> int:
    """Bytes of a size such as 500MB, 2GB, 1.5GiB or a plain number. Raises `InputError`."""
    match = re.fullmatch(r"\s*([\d.]+)\s*([KMGT]?)(i?)B?\s*", text, flags=re.IGNORECASE)
    try:
        number = float(match[1]) if match else -1.0
    except ValueError:
        number = -1.0
    if match is None or not 0 < number < MOST_BYTES:
        raise InputError(f"--max-memory {text!r} is not a size. Write it like 500MB, 2GB or 1500000000.")
    return int(number * (1024 if match[3] else 1000) ** " KMGT".index(match[2].upper() or " "))


def _several(read: Callable[[str], Any], kind: str, metavar: str) -> Parameter:
    """An option that takes values with commas between."""
    return Parameter(
        converter=between_commas(read, kind),
        metavar=metavar,
        negative="",
        n_tokens=1,
        accepts_keys=False,
        show_default=lambda value: ",".join(map(str, value)) or None,
    )


Argument = Parameter(parse=False)
"""Marks a field that is a positional argument of the command."""
Flag = Annotated[bool, Parameter(negative="", show_default=False)]
"""Something that is switched on."""
Names = Annotated[tuple[str, ...], _several(str, "names", "NAMES")]
"""Names, with commas between."""
Numbers = Annotated[tuple[float, ...], _several(float, "numbers", "NUMBERS")]
"""Numbers, with commas between."""
WholeNumbers = Annotated[tuple[int, ...], _several(int, "whole numbers", "NUMBERS")]
"""Whole numbers, with commas between."""
RUN = Group("Run", sort_key=9)
"""Options that every study has, last on the help page."""
Bytes = Annotated[int | None, Parameter(converter=_size, negative="", group=RUN, metavar="SIZE")]
"""A size in bytes, which may be written as 500MB or 2GB."""

Device = Annotated[str | None, Parameter(group=RUN)]
"""The name of a device."""
Activations = Annotated[Literal["device", "cpu", "disk"], Parameter(group=RUN)]
"""Where recorded activations wait until they are used; `circuitome.models.parked.Place`."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all studies are asked; abstract."""

    arguments: ClassVar[tuple[str, ...]] = ()
    """The fields that are the command's positional arguments, in their order."""

    seed: Annotated[int, Parameter(group=RUN)] = 0
    """Seed of everything that is drawn: prompts, resamples, random circuits, learning."""
    max_memory: Bytes = None
    """What the work may take beside the weights, e.g. 500MB or 2GB."""

    def check(self) -> None:
        """Raises `InputError` for settings that cannot be, before anything is loaded."""

    def subject(self) -> str:
        """What it is about, for the name of the run's folder."""
        return ""

    def folder_name(self, study: str) -> str:
        """A readable name for the folder of the run; other settings, another name."""
        digest = hashlib.sha256(command_line(study, self).encode()).hexdigest()[:6]
        return "-".join(plain_name(part) for part in (self.subject(), study, digest) if part)


@dataclass(frozen=True, kw_only=True)
class SpreadSettings(Settings):
    """A study whose work can be done in several places; abstract."""

    on: Annotated[Literal["local", "ray", "slurm"], Parameter(group=RUN)] = "local"
    """Where parts of the work are done: processes of this machine, a Ray cluster, Slurm."""
    address: Annotated[str | None, Parameter(group=RUN)] = None
    """Address of a Ray cluster (by default one is started here), or the partition of Slurm."""
    gpus: Annotated[float, Parameter(group=RUN)] = 0
    """GPUs that each part gets on Ray or Slurm."""


@dataclass(frozen=True, kw_only=True)
class ShardSettings(SpreadSettings):
    """A study of much text that can be done in parts; abstract."""

    shards: Annotated[int, Parameter(group=RUN)] = 1
    """Parts that are done at the same time, each in a process of its own; the result does not depend on it."""

    @override
    def check(self) -> None:
        super().check()
        if self.shards < 1:
            raise InputError(f"--shards must be at least 1, got {self.shards}.")


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Settings):
    """A study of a model without a task's prompts; abstract."""

    model: str = "smollm2-135m"
    """A name that `circuitome models` lists, a hub name, a folder or a .gguf file."""
    device: Device = None
    """Where the model runs: a device, such as cuda, or auto for all; by default $CIRCUITOME_DEVICE, else the CPU."""
    activations: Activations = "device"
    """Where recorded activations wait until they are used: device, cpu or disk, for prompts too long for the device."""
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, Parameter(group=RUN)] = None
    """Precision of the model's weights; by default that of the checkpoint."""

    @override
    def subject(self) -> str:
        return Path(self.model).stem if "/" in self.model else self.model


@dataclass(frozen=True, kw_only=True)
class PromptSettings(ModelSettings):
    """A study of a model on prompt pairs; abstract."""

    arguments: ClassVar[tuple[str, ...]] = ("task",)

    task: Annotated[str, Argument] = "ioi"
    """A name that `circuitome tasks` lists, or, with --data, any name for the task."""
    n: int = 64
    """Number of prompt pairs that are drawn."""
    data: str | None = None
    """JSONL or CSV file with columns clean, corrupted, answer, wrong, in place of a generator."""
    metric: str | None = None
    """A metric in place of the task's: logit_diff, log_prob, kl, accuracy ..., or file.py:NAME of your own."""

    @override
    def check(self) -> None:
        self.origin().check()

    def origin(self) -> "Origin":
        """Where model and prompts come from."""
        from circuitome.runs.draw import Origin

        names = ("task", "model", "n", "seed", "data", "metric")
        return Origin(
            **{name: getattr(self, name) for name in names},
            apart=self.apart(),
            held_out=getattr(self, "held_out", None),
        )

    def apart(self) -> tuple[str, ...]:
        """Which prompts are drawn besides those that the study works on: none, held-out ones, also sizing ones."""
        return ()

    @override
    def subject(self) -> str:
        return f"{self.task}-{super().subject()}"


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """A study of the circuit of a finished run; abstract."""

    arguments: ClassVar[tuple[str, ...]] = ("run",)

    run: Annotated[str, Argument] = ""
    """Folder of a run that holds a circuit."""
    device: Device = None
    """Where the model runs: a device, such as cuda, or auto for all; by default $CIRCUITOME_DEVICE, else the CPU."""
    activations: Activations = "device"
    """Where recorded activations wait until they are used: device, cpu or disk, for prompts too long for the device."""

    @override
    def folder_name(self, study: str) -> str:
        return f"{Path(self.run).resolve().name}-{study}"


def plain_name(text: str) -> str:
    """A text as part of a folder's name: letters, digits, dots and hyphens."""
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "run"


def options(settings: type[Settings] | Settings) -> dict[str, Any]:
    """By field, in order: the name of its option."""
    hints = get_type_hints(settings if isinstance(settings, type) else type(settings), include_extras=True)
    return {field.name: _option(field.name, hints[field.name]) for field in fields(settings)}


def _option(name: str, hint: Any) -> str:
    given = [next(iter(mark.name or ()), "") for mark in _marks(hint)]
    return next((option for option in given if option), "--" + name.replace("_", "-"))


def _marks(hint: Any) -> list[Parameter]:
    return [mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, Parameter)]


def _lists(settings: Settings) -> set[str]:
    """Fields that are lists with commas between, not a fixed number of values."""
    hints = get_type_hints(type(settings), include_extras=True)
    return {name for name, hint in hints.items() if any(getattr(mark, "converter", None) for mark in _marks(hint))}


def command_line(study: str, settings: Settings) -> str:
    """The command line that repeats a run: what differs from the defaults, and always the positional arguments."""
    words = ["circuitome", *study.split()]
    words += [str(getattr(settings, name)) for name in settings.arguments]
    names, lists = options(settings), _lists(settings)
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in settings.arguments or value == field.default:
            continue
        option = names[field.name]
        if value is True:
            words.append(option)
        elif isinstance(value, tuple) and field.name in lists:
            words.append(f"{option}={','.join(map(str, value))}")
        elif isinstance(value, tuple):
            words += [option, *map(str, value)]
        else:
            words += [option, str(value)] if not str(value).startswith("-") else [f"{option}={value}"]
    return shlex.join(words)
