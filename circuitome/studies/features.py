"""The features of a dictionary: what each fires on, how often, and what it writes; and which fire on a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Bars, Block, Column, Figure, Lede, Note, Numbers, Tokens, table
from circuitome.studies.context import Context
from circuitome.studies.dictionary_check import DictionarySettings
from circuitome.studies.pieces import cell
from circuitome.studies.settings import WholeNumbers
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    import torch

    from circuitome.runs.draw import Origin

BEFORE, AFTER, SHORT = 20, 6, 5
"""Tokens of an example before and behind the one at which a feature fires, and on both sides in a table."""
SHOWN, DETAILED, WORDS = 20, 5, 5
"""Features that a terminal lists; those that are shown in full where nobody says which; tokens listed of each."""

QUANTILES, BINS = (1.0, 0.95, 0.75, 0.5, 0.25, 0.05), 20
"""Shares of a feature's activations at which a text is shown, and bars of its histogram."""
KNOWN = 10
"""Tokens on which a feature must have fired for its largest activation to say how large it gets."""


@dataclass(frozen=True, kw_only=True)
class FeaturesSettings(DictionarySettings):
    """List the features of a dictionary: density, examples, tokens promoted; and those that fire on a prompt."""

    prompt: str | None = None
    """A prompt, for the features that fire on it."""
    feature: WholeNumbers = ()
    """Features to show in full, with commas between."""
    task: str | None = None
    """A task that `circuitome tasks` lists, for what features do to its metric."""
    n: int = 32
    """Number of prompt pairs of that task."""

    @override
    def check(self) -> None:
        super().check()
        if self.task is not None:
            self.origin().check()
        if self.prompt is not None and not self.prompt.strip():
            raise InputError("--prompt is empty. Give a text, or leave it out.")

    def origin(self) -> "Origin":
        """Where the task's prompts come from."""
        from circuitome.runs.draw import Origin

        return Origin(task=self.task or "", model=self.model, n=self.n, seed=self.seed, data=None)


def work(settings: FeaturesSettings, context: Context) -> Work:
    """A pass over the windows."""
    return Work(texts=max(1, settings.tokens // settings.length), tokens=settings.length, forward=1.5)


def run(settings: FeaturesSettings, context: Context) -> Findings:
    """Every feature in a row, some in full, and the prompt's."""
    model, dictionary = context.model, settings.loaded(context)
    cut, about = settings.windows(context)
    found = cm.features.describe(context.setting, dictionary, cut)
    prompt = None if settings.prompt is None else on_prompt(model, found, settings.prompt)
    task = None if settings.task is None else on_task(settings, context, found)
    first = (task or prompt or {"features": []})["features"][:DETAILED]
    chosen = settings.feature or tuple(row["feature"] for row in first) or typical(found)
    details = [detailed(model, found, feature) for feature in chosen]
    results = {
        "place": dictionary.place.words,
        "tokens": found.tokens,
        "features": [summary(model, found, feature) for feature in range(len(dictionary))],
        "prompt": prompt,
        "task": task,
        "detailed": details,
    }
    if settings.feature:  # each feature asked for is worth another pass
        everywhere = cm.features.fired(context.setting, dictionary, cut, settings.feature)
        more = [distribution(model, found, every) for every in everywhere]
        results["detailed"] = [part | own for part, own in zip(details, more, strict=True)]
    names = ("active", "mean", "top", "top_places", "usual", "usual_places", "promoted", "suppressed", "neurons")
    return Findings(
        title=f"Features of the {dictionary.place.words} of {settings.model}",
        sign=(
            "Activations are in the units of the values that the dictionary describes. The first token of a window and "
            "special tokens are not counted. Tokens are promoted for a positive activation, per unit of it."
        ),
        results=results,
        blocks=blocks(results),
        tensors={name: getattr(found, name).contiguous() for name in names} | {"ids": cut.ids, "lengths": cut.lengths},
        more={**about, "dictionary": dictionary.described()},
    )


def typical(found: "cm.features.Features") -> tuple[int, ...]:
    """Some features of middle density, which are shown where nobody says which."""
    alive = (found.active >= len(found.top[0])).nonzero()[:, 0]
    order = alive[found.active[alive].argsort(stable=True)]
    step = max(1, len(order) // (DETAILED + 1))
    return tuple(order[step::step][:DETAILED].tolist())


def token(model: "cm.Model", token_id: int) -> str:
    """A token as it is written, its number without a tokenizer."""
    return model.decode([token_id]) if model.tokenizer else str(token_id)


def summary(model: "cm.Model", found: "cm.features.Features", feature: int) -> dict[str, Any]:
    """A feature in a row, as plain JSON values."""
    layer, neuron = found.neurons[feature, 0].tolist() if found.neurons.shape[1] else (None, None)
    return {
        "feature": feature,
        "density": float(found.density[feature]),
        "mean": float(found.mean[feature]),
        "largest": float(found.top[feature, 0]),
        "example": snippet(model, found, feature),
        "promoted": [token(model, int(i)) for i in found.promoted[feature, :WORDS]],
        "neuron": None if layer is None else f"m{layer}.n{neuron}",
        "cosine": None if layer is None else float(found.cosine[feature, 0]),
    }


def snippet(model: "cm.Model", found: "cm.features.Features", feature: int) -> str:
    """The text around its largest activation, with the token there in brackets."""
    for window, position, _ in found.examples(feature)[:1]:
        ids = found.windows.ids[window, : int(found.windows.lengths[window])].tolist()
        words = [token(model, i) for i in ids[max(0, position - SHORT) : position + SHORT + 1]]
        at = min(position, SHORT)
        fired = words[at].lstrip()
        words[at] = f"{words[at][: len(words[at]) - len(fired)]}[{fired or words[at]}]"
        return " ".join("".join(words).split())
    return ""


def detailed(model: "cm.Model", found: "cm.features.Features", feature: int) -> dict[str, Any]:
    """A feature with its examples, as plain JSON values. Raises `UnknownNameError` for one that there is not."""
    largest, usual = found.examples(feature), found.examples(feature, usual=True)

    def named(tokens: "torch.Tensor", by: "torch.Tensor") -> list[list[Any]]:
        return [[token(model, int(i)), float(x)] for i, x in zip(tokens[feature], by[feature], strict=True)]

    neurons = zip(found.neurons[feature].tolist(), found.cosine[feature].tolist(), strict=True)
    return {
        **summary(model, found, feature),
        "examples": [example(model, found, feature, *place) for place in largest],
        "usual": [example(model, found, feature, *place) for place in usual],
        "promoted_by": named(found.promoted, found.promoted_by),
        "suppressed_by": named(found.suppressed, found.suppressed_by),
        "neurons": [[f"m{layer}.n{neuron}", cosine] for (layer, neuron), cosine in neurons],
    }


def distribution(model: "cm.Model", found: "cm.features.Features", every: "cm.features.Fired") -> dict[str, Any]:
    """All activations of a feature: quantiles with an example at each, and a histogram."""
    if not len(every.values):
        return {}
    begins, counts = every.histogram(BINS)
    return {
        "quantiles": [{"share": q, **example(model, found, every.feature, *every.at(q))} for q in QUANTILES],
        "histogram": [[f"{begin:.2f}", count] for begin, count in zip(begins, counts, strict=True)],
    }


def example(
    model: "cm.Model", found: "cm.features.Features", feature: int, window: int, position: int, value: float
) -> dict[str, Any]:
    """The tokens around a place with the feature's activation at each."""
    ids = found.windows.ids[window, : int(found.windows.lengths[window])].tolist()
    values = cm.features.feature_activations(model, found.dictionary, ids[: position + AFTER + 1])[:, feature].tolist()
    start = max(0, position - BEFORE)
    shown = ids[start : position + AFTER + 1]
    return {
        "value": value,
        "tokens": [token(model, i) for i in shown],
        "activations": [x if x == x else None for x in values[start:]],
    }


def on_prompt(model: "cm.Model", found: "cm.features.Features", prompt: str) -> dict[str, Any]:
    """The features that fire on a prompt, the one that is strongest for its own size first.

    Those that fired on hardly any token of the texts come last: their size is not known.
    """
    import torch

    ids = model.encode(prompt)
    values = cm.features.feature_activations(model, found.dictionary, ids)
    largest, at = values.nan_to_num().max(0)
    relative = largest / found.top[:, 0].clamp(min=1e-12)
    relative = relative.where(found.top[:, 0] > 0, 0.0)
    known = found.active >= KNOWN
    order = torch.where(known, relative + relative.max() + 1, relative).argsort(descending=True, stable=True)
    firing = [i for i in order.tolist() if float(largest[i]) > 0]
    rows = [
        {
            **summary(model, found, feature),
            "at": int(at[feature]),
            "token": token(model, ids[int(at[feature])]),
            "value": float(largest[feature]),
            "activations": [x if x == x else None for x in values[:, feature].tolist()],
        }
        for feature in firing
    ]
    return {"text": prompt, "tokens": [token(model, i) for i in ids], "features": rows}


def on_task(settings: FeaturesSettings, context: Context, found: "cm.features.Features") -> dict[str, Any]:
    """What features do to a task's metric: all to first order, the strongest exactly."""
    task = settings.origin().draw(context.model)
    setting = context.setting.but(prompts=task)
    scores = cm.features.scores(setting, found.dictionary)
    best = [feature for feature, score in scores.top(min(SHOWN, len(scores.values))) if score]
    exact = cm.features.effects(setting, found.dictionary, best)
    rows = [
        {**summary(context.model, found, i), "score": float(scores.values[i]), "effect": effect.to_dict()}
        for i, effect in zip(best, exact, strict=True)
    ]
    return {
        "name": task.name,
        "unit": task.unit,
        "prompts": len(task),
        "whole": scores.whole.to_dict(),
        "error": scores.error,
        "sum": float(scores.values.sum()),
        "features": rows,
    }


def task_blocks(task: Mapping[str, Any] | None) -> list[Block]:
    """The features that matter most to a task."""
    if not task:
        return []
    columns = (
        ("feature", "node"),
        ("effect", "estimate", 3, task["unit"], "Change of the metric with its corrupted value; negative: it helps."),
        ("to first order", "signed", 3),
        "promotes",
        Column("largest on the texts", narrow=False),
    )
    rows = (
        (
            str(row["feature"]),
            cell(row["effect"]),
            row["score"],
            ", ".join(map(repr, row["promoted"][:3])),
            row["example"],
        )
        for row in task["features"]
    )
    note = (
        f"Mean over {task['prompts']} prompt pairs of {task['name']}. The whole site with its corrupted values: "
        f"{task['whole']['value']:.3f} {task['unit']}; to first order all features {task['sum']:.3f}, and what the "
        f"dictionary does not describe {task['error']:.3f}."
    )
    return [table("On the task", columns, rows, note=note)]


def blocks(results: Mapping[str, Any]) -> list[Block]:
    """The answer, the prompt's features, some in full, and all in a table that can be searched."""
    rows = results["features"]
    alive = [row for row in rows if row["density"] > 0]
    shown: list[Block] = [Lede(text=sentence(results, len(alive)))]
    shown.append(
        Numbers(
            items=(
                Figure(name="Features", value=len(rows), style="count"),
                Figure(name="Never active", value=1 - len(alive) / len(rows), style="percent", about="of features"),
                Figure(
                    name="Active on a token", value=sum(row["density"] for row in rows), about="features, on average"
                ),
            )
        )
    )
    shown += task_blocks(results["task"])
    shown += prompt_blocks(results["prompt"])
    for feature in results["detailed"]:
        shown += feature_blocks(feature)
    shown.append(every_feature(sorted(alive, key=lambda row: -row["density"])))
    if len(alive) < len(rows):
        dead = ", ".join(str(row["feature"]) for row in rows if row["density"] == 0)
        shown.append(Note(title="Features that never fired", text=dead, folded=True))
    return shown


def sentence(results: Mapping[str, Any], alive: int) -> str:
    """What there is, in a sentence or two."""
    text = (
        f"{alive:,} of {len(results['features']):,} features of the {results['place']} are active on some of "
        f"{results['tokens']:,} tokens."
    )
    if prompt := results["prompt"]:
        best = prompt["features"][0] if prompt["features"] else None
        text += f" {len(prompt['features']):,} fire on the prompt"
        text += f", most strongly for its size feature {best['feature']}, at {best['token']!r}." if best else "."
    return text


def prompt_blocks(prompt: Mapping[str, Any] | None) -> list[Block]:
    """The features that fire on the prompt."""
    if not prompt or not prompt["features"]:
        return []
    columns = (
        ("feature", "node"),
        ("share", "percent", None, "", "Its activation over the largest on the texts."),
        ("activation", "number", 2),
        "at",
        "promotes",
        Column("largest on the texts", narrow=False),
    )
    rows = (
        (
            str(row["feature"]),
            row["value"] / row["largest"] if row["largest"] else None,
            row["value"],
            repr(row["token"]),
            ", ".join(map(repr, row["promoted"][:3])),
            row["example"],
        )
        for row in prompt["features"]
    )
    some = prompt["features"][:SHOWN]
    lines = tuple(tuple(zip(prompt["tokens"], row["activations"], strict=True)) for row in some)
    note = (
        "Features by their largest activation on the prompt, as a share of the largest on the texts; those that fired "
        f"on fewer than {KNOWN} tokens of the texts come last."
    )
    return [
        table("On the prompt", columns, rows, note=note, top=SHOWN),
        Tokens(lines=lines, labels=tuple(str(row["feature"]) for row in some), unit="activation", where="page"),
    ]


def feature_blocks(feature: Mapping[str, Any]) -> list[Block]:
    """One feature in full."""
    name, density = f"Feature {feature['feature']}", feature["density"]
    if not feature["examples"]:
        return [Note(title=name, text="It was never active on the texts.")]
    like = ", ".join(f"{neuron} ({cosine:.2f})" for neuron, cosine in feature["neurons"])
    note = f"Active on {density:.3%} of tokens. Neurons with the most similar output (cosine): {like or 'none'}."
    shown: list[Block] = [strips(feature["examples"], title=name, note=note)]
    shown.append(strips(feature["usual"], note="Activations drawn at random from all.", where="page"))
    if "quantiles" in feature:
        shown += distribution_blocks(feature)
    pairs = zip(feature["promoted_by"], feature["suppressed_by"], strict=True)
    rows = [(repr(a), x, repr(b), y) for (a, x), (b, y) in pairs]
    if rows:
        columns = ("promoted", ("by", "signed", 3), "suppressed", ("down by", "signed", 3))
        shown.append(table("", columns, rows, top=5))
    return shown


def distribution_blocks(feature: Mapping[str, Any]) -> list[Block]:
    """Texts at quantiles of a feature's activations, and their histogram."""
    some = feature["quantiles"]
    lines = tuple(tuple(zip(e["tokens"], e["activations"], strict=True)) for e in some)
    labels = tuple(f"{e['share']:.0%}: {e['value']:.3g}" for e in some)
    note = "At quantiles of all its activations: so many per cent of them are smaller."
    names, counts = zip(*feature["histogram"], strict=True)
    bars = "Tokens by activation; each bar begins at its label."
    return [
        Tokens(lines=lines, labels=labels, unit="activation", note=note),
        Bars(title=f"Activations of feature {feature['feature']}", note=bars, labels=names, values=counts, x="tokens"),
    ]


def strips(examples: Sequence[Mapping[str, Any]], **options: Any) -> Tokens:
    """Examples as lines of coloured tokens."""
    lines = tuple(tuple(zip(e["tokens"], e["activations"], strict=True)) for e in examples)
    return Tokens(lines=lines, labels=tuple(f"{e['value']:.3g}" for e in examples), unit="activation", **options)


def every_feature(rows: Sequence[Mapping[str, Any]]) -> Block:
    """All features that fire, the most frequent first."""
    columns = (
        ("feature", "node"),
        ("density", "percent", None, "", "Share of tokens on which it is active."),
        ("largest", "number", 2, "", "Its largest activation."),
        "where it is largest",
        "promotes",
        Column("neuron", "node", about="The MLP neuron whose output is most like its direction.", narrow=False),
        Column("cosine", "number", 2, narrow=False),
    )
    cells = (
        (
            str(row["feature"]),
            row["density"],
            row["largest"],
            row["example"],
            ", ".join(map(repr, row["promoted"][:3])),
            row["neuron"],
            row["cosine"],
        )
        for row in rows
    )
    return table("Every feature", columns, cells, top=SHOWN)


STUDY = Study("features", FeaturesSettings, run, work)
