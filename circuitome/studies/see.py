"""One prompt in view: what comes next, where heads attend, what the model would say after each part."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from typing_extensions import override

import circuitome as cm
from circuitome.errors import InputError
from circuitome.present.blocks import Attention, Block, Lede, Table, table
from circuitome.studies import lens
from circuitome.studies.context import Context
from circuitome.studies.settings import Argument, ModelSettings, Names
from circuitome.studies.study import Findings, Study, Work

if TYPE_CHECKING:
    from torch import Tensor

CHOSEN = 4
"""Heads that are shown where none are named."""


@dataclass(frozen=True, kw_only=True)
class See(ModelSettings):
    """See one prompt: its next tokens, the attention of some heads, and what the model would say after each part."""

    arguments: ClassVar[tuple[str, ...]] = ("prompt",)

    prompt: Annotated[str, Argument] = ""
    """The prompt."""
    heads: Names = ()
    """Heads whose attention is shown, e.g. a9.h6, a9 for a block, or RUN for those of its circuit; else the busiest."""
    ablate: Names = ()
    """Parts to switch off, e.g. a9.h6,m3, so that next tokens are shown with and without them."""
    value: str = "zero"
    """What ablated parts write: zero, or mean, over the tokens of this prompt."""
    top: int = 10
    """Next tokens that are shown."""

    @override
    def check(self) -> None:
        if self.top < 1:
            raise InputError(f"--top is a number of tokens and must be at least 1, got {self.top}.")
        if self.value not in ("zero", "mean"):
            raise InputError(f"--value is zero or mean, got {self.value!r}.")


def work(settings: See, context: Context) -> Work:
    """A few passes over one prompt, and the unembedding after every part."""
    return Work(texts=1, tokens=max(1, len(context.model.encode(settings.prompt))), forward=5.0)


def run(settings: See, context: Context) -> Findings:
    """Next tokens with and without the ablated parts, attention, and the logit lens at the last position."""
    model = context.model
    if not (ids := model.encode(settings.prompt)):
        raise InputError(f"The prompt {settings.prompt!r} has no tokens.")
    plain = probabilities(model, ids)
    changed = None
    with ablated(settings, model):
        if settings.ablate:
            changed = probabilities(model, ids)
        patterns = cm.attention(model, settings.prompt, named(settings) or busiest(model, settings.prompt))
        stages = cm.logit_lens(model, settings.prompt).to_dict()
    rows = next_tokens(model, plain, changed, settings.top)
    tokens = tuple(patterns.tokens[0])
    shown = tuple((head, tuple(map(tuple, patterns[head][0].tolist()))) for head in patterns.heads)
    return Findings(
        title=f"{settings.prompt!r} in {settings.model}",
        sign="Probabilities are of the next token. Attention is from the token in the row to the token in the column.",
        results={"tokens": list(tokens), "next": rows},
        blocks=blocks(settings, rows, Attention(title="Attention", tokens=tokens, heads=shown), stages),
        tensors={"attention": patterns.pattern},
        more={"prompt": settings.prompt, "data_hash": settings.prompt},
    )


def ablated(settings: See, model: "cm.Model") -> AbstractContextManager[None]:
    """Inside, the parts that are switched off write what the settings say."""
    if not settings.ablate:
        return nullcontext()
    prompts = settings.prompt if settings.value == "mean" else None
    return cm.ablate(model, list(settings.ablate), value=settings.value, prompts=prompts)


def probabilities(model: "cm.Model", ids: Sequence[int]) -> "Tensor":
    """Of every token, after the prompt; float32."""
    import torch

    from circuitome.models.inputs import Inputs

    with torch.no_grad():
        return model.logits(Inputs.whole(torch.tensor([ids], device=model.device)))[0].float().softmax(-1).cpu()


def named(settings: See) -> list[str]:
    """The heads that are asked for; of the folder of a run those of its circuit, by layer."""
    found = list[str]()
    for name in settings.heads:
        if not Path(name).is_dir():
            found.append(name)
            continue
        circuit = cm.open(name).circuit.without_dangling()
        heads = [node for node in circuit.nodes if cm.Node.parse(node).kind == "head"]
        if not heads:
            raise InputError(f"The circuit of {name} has no heads. Name heads such as a9.h6, or leave out --heads.")
        found += heads
    return list(dict.fromkeys(found))


def busiest(model: "cm.Model", prompt: str) -> list[str]:
    """The heads that attend most, from the last token, to others than it and the first."""
    graph = model.graph
    patterns = cm.attention(model, prompt, [f"a{layer}" for layer in range(graph.n_layers)])
    elsewhere = patterns.pattern[0, :, -1, 1:-1].sum(-1)
    order = elsewhere.nan_to_num(-1.0).argsort(descending=True)[:CHOSEN].sort().values
    return [patterns.heads[place] for place in order.tolist()]


def next_tokens(model: "cm.Model", plain: "Tensor", changed: "Tensor | None", top: int) -> list[dict[str, Any]]:
    """The likeliest tokens of either run, with their probability in both."""
    likely = dict.fromkeys(plain.topk(top).indices.tolist())
    if changed is not None:
        likely |= dict.fromkeys(changed.topk(min(3, top)).indices.tolist())
    return [
        {
            "token": model.decode([token]),
            "probability": float(plain[token]),
            "ablated": None if changed is None else float(changed[token]),
        }
        for token in likely
    ]


def blocks(settings: See, rows: list[dict[str, Any]], attention: Attention, stages: dict[str, Any]) -> list[Block]:
    """The answer in a sentence, the next tokens, attention, the lens."""
    best = rows[0]
    text = f"The likeliest next token is {best['token']!r}, with a probability of {best['probability']:.3f}."
    if settings.ablate:
        now = max(rows, key=lambda row: row["ablated"])
        text += (
            f"\nWithout {', '.join(settings.ablate)} its probability is {best['ablated']:.3f}, and the likeliest token "
            f"is {now['token']!r} with {now['ablated']:.3f}."
        )
    stages_at_end = replace(lens.at_position(stages, len(stages["tokens"]) - 1), where="page")
    return [Lede(text=text), likeliest(settings, rows), attention, stages_at_end]


def likeliest(settings: See, rows: list[dict[str, Any]]) -> Table:
    """Next tokens with their probability, and that without the ablated parts."""
    shown = ("probability", "ablated") if settings.ablate else ("probability",)
    cells = [(repr(row["token"]), *(row[name] for name in shown)) for row in rows]
    return table("Next tokens", ["next token", *((name, "number", 3) for name in shown)], cells)


STUDY = Study("see", See, run, work)
