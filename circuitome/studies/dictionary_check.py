"""Check a sparse dictionary: what it explains, how sparsely, and what the model loses when it stands in."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from typing_extensions import override

import circuitome as cm
from circuitome.errors import DataFileError, InputError
from circuitome.present.blocks import Bars, Block, Column, Figure, Lede, Note, Numbers, table
from circuitome.studies.context import Context
from circuitome.studies.pieces import cell
from circuitome.studies.settings import Argument, ModelSettings
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.texts_read import about, windows_of

if TYPE_CHECKING:
    import torch

Site = Literal["resid", "mlp", "attn", "z", "transcoder", "stream-transcoder"]
WORST = 0.9
"""Fraction of variance unexplained from which a page warns."""
STEPS, LOWEST = 2, -6
"""Bars of the density histogram for each power of ten, and the lowest power."""


@dataclass(frozen=True, kw_only=True)
class DictionarySettings(ModelSettings):
    """A study of a dictionary on texts; abstract."""

    arguments: ClassVar[tuple[str, ...]] = ("dictionary",)

    dictionary: Annotated[str, Argument] = ""
    """A run of `circuitome dictionary train`, or a file or folder of SAELens, Gemma Scope, sparsify and others."""
    site: Site | None = None
    """Where it belongs, in case its file does not say."""
    layer: int | None = None
    """Its block, in case its file does not say."""
    texts: str | None = None
    """.txt, .jsonl(.zst), .csv or .parquet, or a folder of them; - for the standard input; hf:DATASET; or our own."""
    tokens: int = 20_000
    """Tokens at most, in windows drawn at random from the texts."""
    length: int = 256
    """Tokens of a window."""

    @override
    def check(self) -> None:
        if not Path(self.dictionary).exists():
            raise DataFileError(f"There is no {self.dictionary}. Give the file or folder of a dictionary.")
        for name in ("tokens", "length"):
            if getattr(self, name) < 2:
                raise InputError(f"--{name} must be at least 2, got {getattr(self, name)}.")

    @override
    def subject(self) -> str:
        return Path(self.dictionary).resolve().name

    def loaded(self, context: Context, *, check: bool = True) -> "cm.features.Dictionary":
        """The dictionary; with `check`, proved on the model."""
        return cm.features.load(self.dictionary, model=context.model, site=self.site, layer=self.layer, check=check)

    def windows(self, context: Context) -> tuple["cm.neurons.Windows", dict[str, Any]]:
        """The texts in windows, and what a manifest says of them."""
        cut = windows_of(self, context)
        return cut, about(self, cut)


@dataclass(frozen=True, kw_only=True)
class DictionaryCheck(DictionarySettings):
    """Measure a dictionary: variance explained, sparsity, dead features, and the loss with it in the values' place."""

    losses: int = 32
    """Windows on which the model's loss is measured; 0 for none."""


def work(settings: DictionaryCheck, context: Context) -> Work:
    """A pass over the windows to the layer, and six over some of them for the losses."""
    windows = max(1, settings.tokens // settings.length)
    return Work(texts=windows, tokens=settings.length, forward=1.0 + 6 * 1.5 * min(1.0, settings.losses / windows))


def run(settings: DictionaryCheck, context: Context) -> Findings:
    """All measures with their intervals, beside random directions and principal components."""
    dictionary = settings.loaded(context, check=False)  # what does not fit is measured here all the same
    cut, about = settings.windows(context)
    quality = cm.features.quality(context.setting, dictionary, cut, losses=settings.losses)
    results = measured(quality)
    return Findings(
        title=f"Dictionary of the {dictionary.place.words} of {settings.model}, checked",
        sign=(
            "FVU: share of the variance left unexplained; 0 is perfect, 1 no better than the mean. Loss recovered: 1 "
            "where the model's loss stays what it was, 0 where it is as bad as with zeros (or means) in place of the "
            "values. Brackets are 95 % intervals over windows."
        ),
        results=results,
        blocks=blocks(results),
        tensors={"density": quality.density},
        more={**about, "dictionary": dictionary.described()},
    )


def measured(quality: "cm.features.Quality") -> dict[str, Any]:
    """Everything measured, as plain JSON values."""
    names = ("fvu", "active", "cosine", "shrinkage", "bias", "loss", "recovered_zero", "recovered_mean")
    return {
        "place": quality.place.words,
        "features": len(quality.density),
        "tokens": quality.tokens,
        "massive": quality.massive,
        "dead": quality.dead,
        "dead_features": int((quality.density == 0).sum()),
        "fits": {
            name: {key: None if (value := getattr(fit, key)) is None else value.to_dict() for key in names}
            for name, fit in quality.fits.items()
        },
        "losses": {name: loss.to_dict() for name, loss in quality.losses.items()},
        "density": histogram(quality.density),
    }


def histogram(density: "torch.Tensor") -> list[list[Any]]:
    """Features by the power of ten of their density: label and count; those that never fired first."""
    edges = [10 ** (LOWEST + step / STEPS) for step in range(-LOWEST * STEPS + 1)]
    values = density.double()
    rows: list[list[Any]] = [["never", int((values == 0).sum())]]
    for low, high in pairwise(edges):
        last = high == edges[-1]
        inside = (values > 0) & (values >= low) & ((values < high) | (last and values <= high))
        rows.append([f"10^{math.log10(low):.3g}", int(inside.sum())])
    first = next((i for i, row in enumerate(rows[1:], 1) if row[1]), 1)
    return [rows[0], *rows[first:]]


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """The answer, the comparison, and how often features fire."""
    own = results["fits"]["dictionary"]
    shown: list[Block] = [Lede(text=sentence(results)), Numbers(items=tuple(cards(results)))]
    shown.append(comparison(results["fits"]))
    if results["losses"]:
        columns = ("in place of the values", ("loss", "estimate", 3, "nats a token"))
        rows = [(name, cell(loss)) for name, loss in results["losses"].items()]
        rows += [(name, cell(fit["loss"])) for name, fit in results["fits"].items()]
        order = sorted(rows, key=lambda row: row[1][0] if isinstance(row[1], tuple) and row[1][0] is not None else 0.0)
        shown.append(
            table("Loss", columns, [("nothing: the model", row[1]) if row[0] == "model" else row for row in order])
        )
    labels, counts = zip(*results["density"], strict=True)
    note = "Each bar holds the features that are active on a share of tokens from its label up to the next."
    shown.append(
        Bars(title="How often features fire", note=note, labels=labels, values=tuple(map(float, counts)), x="features")
    )
    share = results["massive"]
    if share:
        text = (
            f"{share:.2%} of tokens were left out, at which the values are more than ten times as large as usual; they "
            "keep their values when losses are measured."
        )
        shown.append(Note(text=text))
    if own["fvu"]["value"] > WORST:
        text = "It explains hardly any variance: it may belong to another model, site, layer or scaling of the values."
        shown.append(Note(text=text, level="warning"))
    elif own["fvu"]["value"] > results["fits"]["PCA"]["fvu"]["value"]:
        shown.append(Note(text="Principal components of the same number explain more variance.", level="warning"))
    return shown


def sentence(results: Mapping[str, Any]) -> str:
    """What there is, in a sentence or two."""
    own, pca = results["fits"]["dictionary"], results["fits"]["PCA"]
    text = (
        f"{results['features']:,} features of the {results['place']} leave {own['fvu']['value']:.1%} of the variance "
        f"unexplained, {own['active']['value']:.1f} of them active on a token; as many principal components leave "
        f"{pca['fvu']['value']:.1%}."
    )
    if own["recovered_mean"] is not None and own["recovered_mean"]["value"] is not None:
        text += (
            f" In place of the values they keep {own['recovered_mean']['value']:.1%} of what the model's loss gains "
            "from them over their mean."
        )
    return text


def cards(results: Mapping[str, Any]) -> Sequence[Figure]:
    """Headline numbers."""
    own = results["fits"]["dictionary"]

    def figure(name: str, key: str, about: str) -> Figure:
        value = own[key]
        return Figure(name=name, value=value["value"], low=value["low"], high=value["high"], about=about)

    figures = [
        figure("FVU", "fvu", "variance unexplained"),
        figure("Active", "active", "features on a token"),
        Figure(name="Dead", value=results["dead"], style="percent", about=f"never on {results['tokens']:,} tokens"),
    ]
    if own["recovered_mean"] is not None:
        figures.append(figure("Loss recovered", "recovered_mean", "against mean values"))
        figures.append(figure("Loss recovered", "recovered_zero", "against zeros"))
    return figures


def comparison(fits: Mapping[str, Mapping[str, Any]]) -> Block:
    """The dictionary beside random directions and principal components."""
    columns = (
        "",
        ("FVU", "estimate", 3),
        ("active", "number", 1),
        ("recovered", "estimate", 3, "", "Share of the loss recovered against mean values."),
        Column("against zeros", "estimate", 3, narrow=False),
        Column("cosine", "number", 3, narrow=False),
        Column("shrinkage", "number", 3, about="E|y^| / E|y|.", narrow=False),
        Column("bias", "number", 3, about="E|y^|^2 / E<y^, y>; below 1 where y^ is too small.", narrow=False),
    )
    rows = (
        (
            name,
            cell(fit["fvu"]),
            fit["active"]["value"],
            None if fit["recovered_mean"] is None else cell(fit["recovered_mean"]),
            None if fit["recovered_zero"] is None else cell(fit["recovered_zero"]),
            *(fit[key]["value"] for key in ("cosine", "shrinkage", "bias")),
        )
        for name, fit in fits.items()
    )
    note = "Random directions have the scale that fits best; both have as many active as the dictionary."
    return table("Beside simpler things", columns, rows, note=note)


STUDY = Study("dictionary check", DictionaryCheck, run, work)
