"""A file that names many runs: studies, what they all are asked, and what varies.

    study: find
    set: {n: 32, model: smollm2-135m}
    vary:
      task: [ioi, greater-than]
      method: [eap, eap-ig]
      seed: [0, 1, 2]

is twelve runs. A list of such parts is all of their runs.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from circuitome.errors import DataFileError, InputError, unknown_name
from circuitome.studies.settings import Settings, number_of_bytes
from circuitome.studies.study import Study

KEYS = ("study", "set", "vary")


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    study: str
    """The study's command."""
    settings: Settings
    """What it is asked."""
    varied: Mapping[str, Any]
    """Those of its settings that the sweep varies."""

    def folder(self, runs: Path) -> Path:
        """Where its run lies: settings that differ give another folder."""
        return runs / self.settings.folder_name(self.study)


def read_plan(path: str | Path, studies: Mapping[str, Study]) -> list[Job]:
    """The runs that a file asks for, each once.

    Raises `DataFileError` for a file that is no such plan, `UnknownNameError` for a study or a setting that there is
    not, `InputError` for a value that a setting cannot have.
    """
    try:
        parts = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataFileError(f"{path} is no YAML file: {' '.join(str(error).split())}.") from None
    parts = parts if isinstance(parts, list) else [parts]
    jobs: dict[Path, Job] = {}
    for number, part in enumerate(parts, 1):
        where = str(path) if len(parts) == 1 else f"{path}, part {number}"
        for job in _jobs(part, where, studies):
            jobs.setdefault(job.folder(Path()), job)
    if not jobs:
        raise DataFileError(f"{path} asks for no run: a list under vary is empty.")
    return list(jobs.values())


def _jobs(part: Any, where: str, studies: Mapping[str, Study]) -> Iterator[Job]:
    if not isinstance(part, dict) or "study" not in part:
        raise DataFileError(f"{where}: expected a mapping with the keys study, set and vary, such as study: find.")
    for key in part:
        if key not in KEYS:
            raise unknown_name("key", str(key), KEYS, f"It stands in {where}.")
    name, kept, vary = str(part["study"]), part.get("set") or {}, part.get("vary") or {}
    if name not in studies:
        raise unknown_name("study", name, studies, f"It stands in {where}.")
    for given, what in ((kept, "set"), (vary, "vary")):
        if not isinstance(given, dict):
            raise DataFileError(f"{where}: {what} must be a mapping from settings to values, got {given!r}.")
    for field, values in vary.items():
        if not isinstance(values, list):
            raise DataFileError(f"{where}: vary must give a list of values for {field}, got {values!r}.")
    for values in product(*vary.values()):
        varied = dict(zip(map(_field, vary), values, strict=True))
        yield Job(name, _settings(studies[name], {**{_field(k): v for k, v in kept.items()}, **varied}, where), varied)


def _field(option: str) -> str:
    """A setting's field by its name or its option's: max-memory, --max-memory."""
    return str(option).removeprefix("--").replace("-", "_")


def _settings(study: Study, given: Mapping[str, Any], where: str) -> Settings:
    """A study's settings, of values that are checked as its options are."""
    known = [field.name for field in fields(study.settings)]
    for name in given:
        if name not in known:
            raise unknown_name(f"setting of {study.name}", name, known, f"It stands in {where}.")
    hints, values = get_type_hints(study.settings), dict[str, Any]()
    for name, value in given.items():
        if name == "max_memory" and isinstance(value, str):
            value = number_of_bytes(value)
        try:
            values[name] = TypeAdapter(hints[name]).validate_python(value)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise InputError(f"{where}: {name} of {study.name} cannot be {value!r}: {reason}.") from None
    settings = study.settings(**values)
    settings.check()
    return settings
