"""Runs of information flow routes: the trace of one prompt, and importances of heads over a file of texts."""

import csv
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from circuitome.discovery.routes.graph import RouteGraph
from circuitome.discovery.routes.importance import TOKEN_LABELS, RouteImportance, route_importance, token_labels
from circuitome.discovery.routes.parts import RoutePart, route_neurons, route_parts
from circuitome.discovery.routes.tracing import RouteSettings, place_of, plain_task, prompt_ids, trace
from circuitome.engine.batches import make_batch
from circuitome.errors import DataFileError, InputError
from circuitome.models.loading import DEFAULT_MODEL, load
from circuitome.models.model import Model
from circuitome.runs.prompts import PromptSpec
from circuitome.runs.store import Run

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

LOWEST = 0.02
"""Threshold down to which a run keeps edges, so that a reader can lower it without running the model again."""
NEURON_NODES = 3
"""MLP nodes whose neurons are shown where none is asked for."""
SHOWN = 12
"""Heads, and MLPs, whose tokens are shown."""


@dataclass(frozen=True, kw_only=True)
class TraceSpec:
    """Everything that decides what `trace` computes."""

    prompt: str
    """The text."""
    model: str = DEFAULT_MODEL
    """Name, folder or file of the model."""
    position: int = -1
    """Token after which the prediction is made; negative from the end."""
    threshold: float = 0.04
    """Least importance of an edge."""
    norm: str = "l1"
    """l1 or l2."""
    renormalize: bool = False
    """Whether parts below the threshold are set to 0 and the rest brought to a sum of 1."""
    contrast: tuple[str, str] | None = None
    """Two tokens whose logit difference the last token's parts are measured by."""
    generate: int = 0
    """Tokens to generate, the likeliest each time; the route into each is traced."""
    neurons: tuple[str, ...] = ()
    """MLP nodes such as m29@13 whose neurons are shown; none for the strongest of each route."""
    max_memory: int | None = None
    """Bytes that a batch may take beside the weights."""

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["circuitome", "trace", self.prompt, "--model", self.model]
        words += [f"--position={self.position}"] if self.position != -1 else []
        words += ["--threshold", f"{self.threshold:g}", "--norm", self.norm]
        words += ["--renormalize"] if self.renormalize else []
        words += ["--contrast", *self.contrast] if self.contrast else []
        words += ["--generate", str(self.generate)] if self.generate else []
        words += ["--neurons", ",".join(self.neurons)] if self.neurons else []
        return shlex.join(words + (["--max-memory", str(self.max_memory)] if self.max_memory else []))

    def check(self) -> None:
        """Raises for settings that cannot be, before anything is loaded."""
        self.settings()
        if self.generate < 0:
            raise InputError(f"--generate is a number of tokens and must be 0 or more, got {self.generate}.")
        if self.generate and self.position != -1:
            raise InputError("--generate goes on from the end of the prompt; leave out --position.")

    def settings(self) -> RouteSettings:
        """How parts are measured. A plain route is kept down to a lower threshold than it is shown at."""
        lowest = self.threshold if self.renormalize else min(self.threshold, LOWEST)
        RouteSettings(self.threshold, self.norm)
        return RouteSettings(lowest, self.norm, self.renormalize, self.contrast)

    def folder_name(self) -> str:
        """A readable folder name for the run."""
        return f"trace-{Path(self.model).stem}-{hashlib.sha256(self.command().encode()).hexdigest()[:6]}"


def run_trace(spec: TraceSpec, progress: Progress | None = None) -> Run:
    """The route into a prediction, or into each generated token, with the tokens that its parts promote."""
    start, tell = time.perf_counter(), progress or _silent
    spec.check()
    tell("loading", 0, 1)
    model = load(spec.model)
    ids = prompt_ids(model, spec.prompt)
    ids, places = (
        generated(model, ids, spec.generate, tell) if spec.generate else (ids, [place_of(spec.position, len(ids))])
    )
    tell("tracing", 0, 1)
    graphs = trace(model, [ids], [places], spec.settings(), max_memory=spec.max_memory)[0]
    tell("tracing", 1, 1)
    routes = [_route(model, ids, graph, spec, ids[graph.position + 1] if spec.generate else None) for graph in graphs]
    sign = (
        "An importance is the share of a node that a part makes up (proximity, "
        f"{spec.norm.upper()}): all parts of a node sum to 1."
    )
    if spec.contrast:
        sign += " Parts of the last token's stream are measured by what they add to the logit difference."
    manifest = {
        **described(spec.model, model, "trace", spec.command(), [ids]),
        "sign": sign,
        "prompt": spec.prompt,
        "threshold": spec.threshold,
        "norm": spec.norm,
        "contrast": None if spec.contrast is None else list(spec.contrast),
        "results": {"routes": routes},
        "seconds": round(time.perf_counter() - start, 2),
    }
    return Run(manifest, {"ids": torch.tensor(ids)})


def generated(model: Model, ids: list[int], count: int, tell: Progress) -> tuple[list[int], list[int]]:
    """The prompt with `count` likeliest tokens behind it, and the positions after which each was predicted."""
    ids, first = list(ids), len(ids) - 1
    for done in range(count):
        batch = make_batch(model, plain_task([ids]), [0], shared_prefix=False, corrupted=False)
        with torch.no_grad():
            ids.append(int(model.logits(batch.clean)[0].argmax()))
        tell("generating", done + 1, count)
    return ids, list(range(first, first + count))


def _route(model: Model, ids: Sequence[int], graph: RouteGraph, spec: TraceSpec, token: int | None) -> dict[str, Any]:
    """One route as plain JSON, with tokens of its parts."""
    shown = graph if spec.renormalize else graph.at(spec.threshold)
    parts = route_parts(model, ids, shown, n=SHOWN)
    nodes = spec.neurons or tuple(node for node, _ in shown.mlps()[:NEURON_NODES])
    neurons = {node: [_part(one) for one in route_neurons(model, ids, shown, node)] for node in nodes}
    return {
        **graph.to_dict(),
        "shown_threshold": spec.threshold,
        "generated": None if token is None else model.decode([token]),
        "parts": [_part(one) for one in parts],
        "neurons": neurons,
    }


def _part(part: RoutePart) -> dict[str, Any]:
    return {key: list(map(list, value)) if isinstance(value, tuple) else value for key, value in vars(part).items()}


@dataclass(frozen=True, kw_only=True)
class RoutesSpec:
    """Everything that decides what `routes` computes."""

    file: str
    """Texts: a .txt file with one a line, or JSONL or CSV with a column `text` and columns of labels."""
    by: str | None = None
    """A column of labels, or position or subword; None for no groups."""
    model: str = DEFAULT_MODEL
    """Name, folder or file of the model."""
    norm: str = "l1"
    """l1 or l2."""
    max_memory: int | None = None
    """Bytes that a batch may take beside the weights."""

    def command(self) -> str:
        """The command line that repeats this run."""
        words = ["circuitome", "routes", "--file", self.file, "--model", self.model, "--norm", self.norm]
        words += ["--by", self.by] if self.by else []
        return shlex.join(words + (["--max-memory", str(self.max_memory)] if self.max_memory else []))

    def folder_name(self) -> str:
        """A readable folder name for the run."""
        digest = hashlib.sha256(self.command().encode()).hexdigest()[:6]
        return f"{Path(self.file).stem}-{Path(self.model).stem}-routes-{digest}"


def run_routes(spec: RoutesSpec, progress: Progress | None = None) -> Run:
    """Importances of heads and MLPs over a file of texts, by group."""
    start, tell = time.perf_counter(), progress or _silent
    texts, labels = read_texts(Path(spec.file), None if spec.by in TOKEN_LABELS else spec.by)
    tell("loading", 0, 1)
    model = load(spec.model)
    given: Any = token_labels(model, texts, spec.by) if spec.by in TOKEN_LABELS else labels
    found = route_importance(
        model,
        texts,
        given,
        norm=spec.norm,
        max_memory=spec.max_memory,
        progress=tell,
    )
    manifest = {
        **described(spec.model, model, "routes", spec.command(), [prompt_ids(model, text) for text in texts]),
        "sign": "An importance is the share of a token's stream that a head or an MLP makes up, mean over tokens.",
        "by": spec.by,
        "texts": len(texts),
        "results": {"groups": [_group(found, name) for name in found.groups], "general": _general(found)},
        "seconds": round(time.perf_counter() - start, 2),
    }
    tensors = {"mean": found.mean, "sums": found.sums, "counts": found.counts, "group_of": found.group_of}
    return Run(manifest, tensors)


def _general(found: RouteImportance) -> list[dict[str, Any]]:
    """Heads that matter in every group, with their importance in each."""
    return [
        {"head": name, "least": value, "by_group": {g: found.estimate(name, g).to_dict() for g in found.groups}}
        for name, value in found.general(SHOWN)
    ]


def _group(found: RouteImportance, name: str) -> dict[str, Any]:
    rows = found.specific(name, SHOWN) if len(found.groups) > 1 else []
    return {
        "name": name,
        "tokens": found.tokens(name),
        "heads": [[round(x, 6) for x in row] for row in found.heads(name).tolist()],
        "mlps": [round(x, 6) for x in found.mlps(name).tolist()],
        "specific": [
            {"head": head, "lead": lead, "mean": found.estimate(head, name).to_dict()}
            for head, lead in rows
            if lead > 0
        ],
    }


def read_texts(path: Path, by: str | None) -> tuple[list[str], list[str] | None]:
    """Texts of a file and their labels in column `by`. Raises `DataFileError`, with file and line."""
    try:
        raw = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataFileError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path}: not UTF-8 text ({error.reason}). Save the file as UTF-8.") from None
    rows = _rows(path, raw)
    if not rows:
        raise DataFileError(f"{path}: the file is empty; it needs at least one text.")
    for where, row in rows:
        for column in ("text", *([by] if by else [])):
            if not isinstance(row.get(column), str) or not row[column]:
                known = ", ".join(repr(name) for name in row)
                raise DataFileError(f"{where}: there is no {column!r} (or it is no text); found {known}.")
    return [row["text"] for _, row in rows], [row[by] for _, row in rows] if by else None


def _rows(path: Path, raw: str) -> list[tuple[str, dict[str, Any]]]:
    """Where each row is, and its cells by column."""
    suffix, lines = path.suffix.lower(), list(enumerate(raw.splitlines(), 1))
    if suffix == ".txt":
        return [(f"{path}, line {n}", {"text": line}) for n, line in lines if line.strip()]
    if suffix == ".csv":
        reader = csv.DictReader(raw.splitlines(keepends=True))
        return [(f"{path}, line {reader.line_num}", dict(row)) for row in reader]
    if suffix != ".jsonl":
        raise DataFileError(f"{path}: expected a file that ends in .txt, .jsonl or .csv, got {path.suffix!r}.")
    rows = []
    for n, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataFileError(f"{path}, line {n}: not valid JSON ({error.msg} at column {error.colno}).") from None
        if not isinstance(row, dict):
            raise DataFileError(f"{path}, line {n}: expected an object with 'text', got {str(row)[:40]}.")
        rows.append((f"{path}, line {n}", row))
    return rows


def described(name: str, model: Model, kind: str, command: str, prompts: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What was run on what, as in every run, where prompts have no answers."""
    manifest = PromptSpec(task="texts", model=name).manifest(kind, model, plain_task(prompts), command)
    return {key: value for key, value in manifest.items() if key not in ("prompts", "prompts_from", "task", "seed")}


def _silent(what: str, done: int, total: int) -> None:
    pass
