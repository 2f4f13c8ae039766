"""Train a sparse dictionary on a model's own activations: features of the stream, of an MLP or of an attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Block, Figure, Lede, Lines, Numbers, Series
from circuitome.studies.context import Context
from circuitome.studies.settings import Flag, ModelSettings, ShardSettings
from circuitome.studies.shards import spread
from circuitome.studies.study import Findings, Study, Work
from circuitome.studies.texts_read import about, expected_tokens, windows_of

Site = Literal["resid", "mlp", "attn", "z", "transcoder"]
Kind = Literal["topk", "batchtopk", "jumprelu", "l1"]
AHEAD = "activations"
"""Folder of what shards have gathered."""
LEARNING = 0.2
"""What learning from a token costs, in forward passes of it; measured on SmolLM2 with 8 features a dimension."""


@dataclass(frozen=True, kw_only=True)
class DictionaryTrain(ShardSettings, ModelSettings):
    """Train a sparse dictionary (sparse autoencoder or transcoder) on a model's own activations."""

    site: Site = "resid"
    """What it describes: the stream, what an MLP or an attention writes, z, or an MLP from its input to its output."""
    layer: int = 0
    """The block, from 0."""
    kind: Kind = "topk"
    """How features are made sparse."""
    width: str = "8x"
    """Number of features, or 8x for eight for each dimension."""
    k: int = 32
    """Features active on a token: exactly (topk), on average (batchtopk), or as the target (jumprelu)."""
    l1: float = 5.0
    """Weight of the penalty of --kind l1."""
    skip: Flag = False
    """Give a transcoder a linear part of its own."""
    texts: str | None = None
    """.txt, .jsonl(.zst), .csv or .parquet, or a folder of them; - for the standard input; hf:DATASET; or our own."""
    tokens: int = 1_000_000
    """Tokens at most, in windows drawn at random from the texts."""
    length: int = 256
    """Tokens of a window."""

    @override
    def check(self) -> None:
        super().check()
        for name in ("tokens", "length"):
            if getattr(self, name) < 2:
                raise InputError(f"--{name} must be at least 2, got {getattr(self, name)}.")
        number = self.width.removesuffix("x")
        if not (number.isascii() and number.isdigit() and int(number)):
            raise InputError(f"--width is a number of features, or 8x for eight a dimension, got {self.width!r}.")

    @override
    def subject(self) -> str:
        return f"{super().subject()}-{self.site}{self.layer}"

    def features(self, d_model: int) -> int:
        """The number of features."""
        return int(self.width.removesuffix("x")) * (d_model if self.width.endswith("x") else 1)


def work(settings: DictionaryTrain, context: Context) -> Work:
    """A pass to the layer over all windows, and learning from it."""
    tokens = expected_tokens(settings)
    share = (settings.layer + 1) / len(context.model.blocks)
    notes = {"MB on disk": harvested_bytes(settings, context, tokens) // 1_000_000} if settings.shards > 1 else {}
    count = max(1, tokens // settings.length)
    return Work(texts=count, tokens=settings.length, forward=share + LEARNING, notes=notes)


def harvested_bytes(settings: DictionaryTrain, context: Context, tokens: int) -> int:
    """What the activations that shards gather take on disk."""
    place = cm.features.Place(settings.site, settings.layer)
    given, described = place.widths(context.model)
    return tokens * (described + (0 if place.one_site else given)) * context.model.dtype.itemsize


def shard(settings: DictionaryTrain, context: Context, number: int) -> None:
    """Gather the activations of one of the shards."""
    from circuitome.features.harvest import harvest
    from circuitome.features.training import stretches

    assert context.folder is not None, "shards have a folder"
    cut = windows_of(settings, context)
    place = cm.features.Place(settings.site, settings.layer)
    place.check(context.model)
    harvest(context.setting, place, cut, stretches(cut), context.folder / AHEAD, (number, settings.shards))


def run(settings: DictionaryTrain, context: Context) -> Findings:
    """The dictionary, and how its training went."""
    model, cut = context.model, windows_of(settings, context)
    spread("dictionary train", settings, context)
    trained = cm.features.train(
        context.setting.but(checkpoint=context.file("dictionary.safetensors")),
        cut,
        site=settings.site,
        layer=settings.layer,
        kind=settings.kind,
        width=settings.features(cm.features.Place(settings.site, settings.layer).widths(model)[1]),
        k=settings.k,
        l1=settings.l1,
        skip=settings.skip,
        ahead=context.file(AHEAD) if settings.shards > 1 else None,
    )
    results = measured(trained)
    return Findings(
        title=f"Dictionary of the {trained.dictionary.place.words} of {settings.model}",
        sign=(
            "FVU is the share of the variance that the dictionary leaves unexplained, on the tokens of a stretch as "
            "they are learned from: 0 is perfect, 1 is no better than the mean. `circuitome dictionary check` measures "
            "on other texts."
        ),
        results=results,
        blocks=blocks(results),
        tensors={**trained.dictionary.tensors(), "history": trained.history},
        more={**about(settings, cut), "dictionary": trained.dictionary.described()},
    )


def measured(trained: "cm.features.Trained") -> dict[str, Any]:
    """How the training went, as plain JSON values."""
    names = ("tokens", "fvu", "active", "dead")
    return {
        "place": trained.dictionary.place.words,
        "features": len(trained.dictionary),
        "kind": trained.dictionary.kind,
        "tokens_a_second": {name: round(value, 1) for name, value in trained.speed.items()},
        "history": [dict(zip(names, row, strict=True)) for row in trained.history.tolist()],
    }


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """The answer, and the curves of the training."""
    rows, last = results["history"], results["history"][-1]
    tokens = tuple(row["tokens"] for row in rows)

    def curve(name: str, key: str) -> Series:
        return Series(name=name, x=tokens, y=tuple(row[key] for row in rows))

    shares = (curve("FVU", "fvu"), curve("dead features", "dead"))
    speed = results["tokens_a_second"]
    gathering = []
    if speed:
        share = speed["harvest"] / speed["bare"]
        about = f"tokens a second by the clock; with learning {speed['train']:,.0f}"
        gathering = [
            Figure(name="Gathering", value=speed["harvest"], style="count", about=about),
            Figure(name="Beside bare passes", value=share, about="gathering's tokens a second over theirs"),
        ]
    return [
        Lede(
            text=(
                f"{results['features']:,} features of the {results['place']}, learned from {last['tokens']:,.0f} "
                f"tokens, leave {last['fvu']:.1%} of the variance unexplained with {last['active']:.1f} of them active "
                "on a token."
            )
        ),
        Numbers(
            items=(
                Figure(name="FVU", value=last["fvu"], about="variance unexplained, last tokens read"),
                Figure(name="Active", value=last["active"], about="features on a token"),
                Figure(name="Dead", value=last["dead"], style="percent", about="of features, lately"),
                *gathering,
            )
        ),
        Lines(title="Training", x="tokens read", y="share", series=shares),
        Lines(
            title="Active features", x="tokens read", y="on a token", series=(curve("active", "active"),), where="page"
        ),
    ]


STUDY = Study("dictionary train", DictionaryTrain, run, work, shard=shard)
