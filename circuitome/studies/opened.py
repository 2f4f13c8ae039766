"""A finished run in Python: everything that its command made, under a name."""

import builtins
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitome.errors import InputError, RunError, unknown_name
from circuitome.graph.node import Node
from circuitome.present import notebook
from circuitome.present.blocks import AnyBlock, Document
from circuitome.present.export import PICTURES, figures
from circuitome.present.export import export as write_figure
from circuitome.present.stored import document
from circuitome.results import EffectMap
from circuitome.runs.parquet import write_rows
from circuitome.runs.reopen import Reopened
from circuitome.runs.store import MANIFEST, load_run
from circuitome.studies.catalog import STUDIES
from circuitome.studies.result_views import frame

if TYPE_CHECKING:
    import pandas

    from circuitome.causal import Subspace
    from circuitome.neurons.neuron_census import Census

GRAPHS = ("graphml", "csv", "json", "neuronpedia")
"""What a run's circuit can be written as."""
ROWS = ("jsonl", "parquet")
"""What a run's census can be written as."""


class OpenedRun(Reopened):
    """A finished run of any study.

        run = cm.open("runs/ioi-smollm2-135m-find-3f2a91")
        run.circuit, run.scores, run.task, run.model     # of runs that have them; loaded when first asked for
        run.results, run.tensors                         # every number that the command wrote
        run.plot("faithfulness-by-size"), run.to_pandas("prompts")

    In a notebook it shows itself as its page does. Parts that a run lacks raise `RunError`, which says what it has.
    """

    def _repr_html_(self) -> str:
        return notebook.html(*self.document.blocks)

    @cached_property
    def document(self) -> Document:
        """What the run says, as blocks."""
        return document(self.run, self.folder)

    @property
    def results(self) -> dict[str, Any]:
        """The study's numbers as plain JSON values."""
        return dict(self.manifest["results"])

    @property
    def tensors(self) -> dict[str, Any]:
        """Its tensors by name."""
        return dict(self.run.tensors)

    @property
    def verdict(self) -> dict[str, Any]:
        """Of a validate run: criteria, tests and whether the circuit holds."""
        return self._results_of("validate", "verdict")

    @property
    def explanation(self) -> dict[str, Any]:
        """Of an explain run: roles of heads and their evidence."""
        return self._results_of("explain", "explanation")

    @property
    def effects(self) -> list[EffectMap]:
        """Of a patch or path run: its maps of effects, with those of every prompt."""
        if "samples0" not in self.run.tensors:
            raise self._without("effects", "patch or path")
        plain = {name: self.run.tensors[name] for name in ("clean", "corrupted")}
        groups = tuple(self.manifest["task"].get("groups", ()))
        return [
            EffectMap(
                samples=self.run.tensors[f"samples{number}"],
                axes=(tuple(found["rows"]), tuple(found["columns"])),
                unit=found["unit"],
                groups=groups,
                name=found["name"],
                **plain,
            )
            for number, found in enumerate(self.results["maps"])
        ]

    @property
    def figures(self) -> dict[str, AnyBlock]:
        """Its figures and tables by name."""
        return figures(self.document)

    def plot(self, figure: str | None = None) -> Any:
        """The Altair chart, or the drawing, of one figure; of the first that is a picture, where none is named."""
        if figure is not None:
            return notebook.plot(self._figure(figure))
        for block in self.figures.values():
            if (picture := notebook.plot(block)) is not block:
                return picture
        raise InputError(f"{self.folder} holds no picture. It has the tables {', '.join(self.figures)}.")

    def export(self, path: str | Path, figure: str | None = None, *, to: str | None = None) -> None:
        """Write one figure or table, or without `figure` the circuit, to a file.

        `to` is what the path ends with, unless given: png, svg, pdf, csv or json for figures, and graphml for those
        that draw a graph; graphml, csv, json or neuronpedia (json and neuronpedia are the attribution-graph schema) for
        the circuit, with its scores; jsonl or parquet (which needs pyarrow) for a census, a row for each neuron.
        Raises `InputError` for another format and where the file cannot be written, `RunError` where there is no
        circuit.
        """
        to = to or Path(path).suffix.removeprefix(".")
        if figure is None and to in GRAPHS:
            self._export_circuit(Path(path), to)
            return
        if figure is None and to in ROWS:
            self._export_census(Path(path), to)
            return
        if figure is None and to in PICTURES:
            figure = next((name for name, block in self.figures.items() if notebook.plot(block) is not block), None)
        if figure is None:
            raise unknown_name("format", to, (*PICTURES, *GRAPHS, *ROWS))
        write_figure(self.document, figure, to, path)

    def _export_circuit(self, path: Path, to: str) -> None:
        circuit, scores = self.circuit, None if self.scores is None else self.scores.values
        try:
            if to == "graphml":
                circuit.to_graphml(path, scores)
            elif to == "csv":
                circuit.to_csv(path, scores)
            else:
                tokens = [self.model.decode([token]) for token in self.task.pairs[0].clean]
                circuit.to_json(path, scores, tokens)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error

    def subspace(self, variable: str) -> "Subspace":
        """Of a run of align, the directions in which a variable was judged, for `cm.causal.set_variable`.

        Raises `UnknownNameError` for a variable that it has not, `InputError` where it judged a whole place.
        """
        if self.kind != "align":
            raise self._without("aligned variables", "align")
        verdicts = {verdict["variable"]: verdict for verdict in self.results["verdicts"]}
        if variable not in verdicts:
            raise unknown_name("variable", variable, verdicts)
        from circuitome.causal.subspaces import Subspace

        verdict, first = verdicts[variable], f"basis.{variable}"
        names = [first, *sorted((n for n in self.tensors if n.startswith(f"{first}.")), key=_number)]
        if first not in self.tensors:
            raise InputError(
                f"{self.folder} judged the whole of {verdict['place']} for {variable!r}, not directions in it. Take "
                f'cm.causal.whole(model, "{verdict["place"]}", "{variable}").'
            )
        return Subspace(verdict["place"], variable, tuple(self.tensors[name] for name in names), (), verdict["search"])

    @property
    def census(self) -> "Census":
        """Of a neurons run: what every neuron fires on."""
        from circuitome.neurons.neuron_census import Census

        if "census" not in self.manifest:
            raise self._without("census", "neurons")
        return Census.of(self.run.tensors, self.manifest["census"])

    def _export_census(self, path: Path, to: str) -> None:
        census = self.census
        names = (str(Node("neuron", layer, i)) for layer in census.layers for i in range(census.active.shape[1]))
        rows = map(census.row, names)
        try:
            if to == "parquet":
                write_rows(map(_flat, rows), path)
                return
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error

    def to_pandas(self, figure: str) -> "pandas.DataFrame":
        """The numbers of one figure or table as a DataFrame. Raises `InputError` where pandas is not installed."""
        return frame(self._figure(figure))

    def _figure(self, name: str) -> AnyBlock:
        if name not in self.figures:
            raise unknown_name("figure", name, self.figures)
        return self.figures[name]

    def _results_of(self, kind: str, part: str) -> dict[str, Any]:
        if self.kind != kind:
            raise self._without(part, kind)
        return self.results


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A census's row with a column for each n, whose n-grams are of one type."""
    grams = {
        f"fires_on_{n}": [{"tokens": gram, "fired": fired, "occurs": occurs} for gram, fired, occurs in found]
        for n, found in row["fires_on"].items()
    }
    return {**{name: value for name, value in row.items() if name != "fires_on"}, **grams}


def open(run: str | Path, *, runs: str | Path = "runs") -> OpenedRun:
    """A finished run, by its folder or by the name of a study: then the newest run of that study under `runs`.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> from circuitome.studies.catalog import STUDIES
    >>> from circuitome.studies.frame import perform
    >>> study = STUDIES["weights"]
    >>> asked = study.settings(head="a2.h0", model="known-ioi")
    >>> run = cm.open(perform(study, asked, out=Path(mkdtemp()) / "run")[1])
    >>> run.kind, run.results["copying"]["score"]
    ('weights', 1.0)

    Raises `RunError` where there is none or it is damaged.
    """
    folder = Path(run)
    if not folder.is_dir() and str(run) in STUDIES:
        folder = _newest(str(run), Path(runs))
    return OpenedRun(folder, load_run(folder))


def _newest(study: str, runs: Path) -> Path:
    """The folder of the run of a study that was made last."""
    made: dict[Path, str] = {}
    for path in runs.glob(f"*/{MANIFEST}"):
        with builtins.open(path, encoding="utf-8") as file:
            manifest = json.load(file)
        if manifest.get("kind") == study:
            made[path.parent] = manifest.get("created", "")
    if not made:
        raise RunError(f"There is no {study} run in {runs}/. Make one: circuitome {study}.")
    return max(made, key=lambda folder: made[folder])


def _number(name: str) -> int:
    """The number at the end of a tensor's name."""
    return int(name.rpartition(".")[2])
