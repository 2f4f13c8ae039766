"""What a model does with one prompt, now: next tokens, attention, the lens at the last token, routes.

The same functions as those behind see, lens and trace, from one recorded pass; one more where parts are switched off.
"""

import weakref
from contextlib import ExitStack
from typing import Any

import circuitome as cm
from circuitome.errors import InputError
from circuitome.studies.see import next_tokens

TOP, LENS, ROUTE_NEURONS = 8, 3, 4
"""Next tokens, tokens of each stage of the lens, neurons of each MLP on the route."""
LONGEST, LETTERS = 512, 16_384
"""Tokens, and letters, of a prompt."""


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Plain JSON for a request with model, prompt, heads (to show), ablate (switched off), and routes: true or false.

    Raises `InputError` for a prompt without tokens or of too many, for what is no text, and what `load` and `ablate`
    raise.
    """
    named = [*(request.get("heads") or ()), *(request.get("ablate") or ()), request.get("model"), request.get("prompt")]
    if not all(isinstance(text, str) for text in named):
        raise InputError("Prompt and model are texts; heads and ablate are lists of names.")
    if len(request["prompt"]) > LETTERS:
        raise InputError(f"The prompt has {len(request['prompt']):,} letters; the prompt box takes {LETTERS:,}.")
    model = cm.load(request["model"])
    ids = model.encode(request["prompt"])
    if not 0 < len(ids) <= LONGEST:
        raise InputError(f"The prompt has {len(ids)} tokens; the prompt box takes 1 to {LONGEST}.")
    if request.get("routes"):
        return route(model, ids)
    ablate = list(request.get("ablate") or ())
    plain, patterns = _plain(model, ids)
    changed = None
    if ablate:
        changed, patterns = _pass(model, ids, ablate)
    shown = changed or plain
    heads = _heads(model, patterns, list(request.get("heads") or ()))
    graph = model.graph
    after = None if changed is None else changed["probabilities"]
    return {
        "tokens": [model.decode([token]) for token in ids],
        "next": next_tokens(model, plain["probabilities"], after, TOP),
        "lens": _lens(model, shown["stages"]),
        "attention": {head: patterns[layer][0, index].tolist() for head, (layer, index) in heads.items()},
        "looks": [pattern[0, :, -1, 1:-1].sum(-1).tolist() for pattern in patterns],
        "shape": {"layers": graph.n_layers, "heads": graph.n_heads},
    }


_LAST: list[tuple[Any, list[int], Any]] = []
"""The prompt that came last, on which model, and its pass: switching a part off then costs one more."""


def _plain(model: "cm.Model", ids: list[int]) -> tuple[dict[str, Any], list[Any]]:
    """The pass with nothing switched off."""
    for asked, before, result in _LAST:
        if asked() is model and before == ids:
            return result
    _LAST[:] = [(weakref.ref(model), ids, _pass(model, ids, []))]
    return _LAST[0][2]


def _pass(model: "cm.Model", ids: list[int], ablate: list[str]) -> tuple[dict[str, Any], list[Any]]:
    """One pass: probabilities of the next token, the last token's stream after each part, every block's attention."""
    import torch

    from circuitome.models.inputs import Inputs
    from circuitome.weights.lens import stages_of

    patterns: list[Any] = []
    with torch.no_grad(), ExitStack() as stack:
        if ablate:
            stack.enter_context(cm.ablate(model, ablate))
        stack.enter_context(model.watching_attention(lambda layer, pattern: patterns.append(pattern.float())))
        seen = model.record(Inputs.whole(torch.tensor([ids], device=model.device)))
    assert seen.logits is not None
    stages = [(name, resid[0, -1:]) for name, resid in stages_of(model, seen)]
    return {"probabilities": seen.logits[0].float().softmax(-1).cpu(), "stages": stages}, patterns


def _heads(model: "cm.Model", patterns: list[Any], asked: list[str]) -> dict[str, tuple[int, int]]:
    """The heads asked for, else those that attend most to other tokens than the first and the last: name, place."""
    import torch

    from circuitome.studies.see import CHOSEN

    names = {
        f"a{layer}.h{head}": (layer, head) for layer in range(len(patterns)) for head in range(model.graph.n_heads)
    }
    if unknown := [name for name in asked if name not in names]:
        raise InputError(f"{model.name} has no head {unknown[0]}. Heads are a0.h0 to {list(names)[-1]}.")
    if asked:
        return {name: names[name] for name in asked}
    elsewhere = torch.stack([pattern[0, :, -1, 1:-1].sum(-1) for pattern in patterns]).flatten().nan_to_num(-1.0)
    most = elsewhere.argsort(descending=True)[:CHOSEN].sort().values.tolist()
    return {list(names)[place]: list(names.values())[place] for place in most}


def _lens(model: "cm.Model", stages: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Stage by stage, the likeliest next tokens with their probabilities."""
    import torch

    with torch.no_grad():
        logits = model.unembed(torch.cat([resid for _, resid in stages])).float().softmax(-1)
    best = logits.topk(min(LENS, logits.shape[-1]))
    rows = zip(stages, best.indices.tolist(), best.values.tolist(), strict=True)
    return [
        {"after": name, "tokens": [[model.decode([i]), p] for i, p in zip(ids, values, strict=True)]}
        for (name, _), ids, values in rows
    ]


def route(model: "cm.Model", ids: list[int]) -> dict[str, Any]:
    """The route into the prediction after the last token: what a report's view of it has, and its MLPs' neurons."""
    from circuitome.discovery.routes.tracing import trace as traced
    from circuitome.engine.setting import Setting
    from circuitome.present.drawings import routes
    from circuitome.runs.store import plain
    from circuitome.studies import trace

    asked = trace.Trace(prompt="-")
    graph = traced(Setting(model), [ids], [[len(ids) - 1]], asked.route_settings())[0][0]
    found = trace.traced_route(model, ids, graph, asked, None)
    strongest = (part["name"] for parts in found["neurons"].values() for part in parts[:ROUTE_NEURONS])
    neurons = list(dict.fromkeys(name.partition("@")[0] for name in strongest))  # some act at several tokens
    drawn = trace.drawn_route(found)
    return {
        "title": drawn.title,
        "drawing": str(routes.svg(drawn)),
        "data": plain(routes.script_data(drawn)),
        "neurons": neurons,
    }
