"""Prompts read once, their keys kept; answers decoded or scored from there, with attention seen or changed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, MemoryBudgetError, unknown_name
from circuitome.heads.long_context.needles import Case
from circuitome.heads.long_context.streaming import learned_positions
from circuitome.models.attention import Asked, attending, check_replaceable, plain_attention
from circuitome.models.inputs import FrozenLayer, Inputs
from circuitome.models.model import Model

Mode = Literal["zero", "even"]
"""How a head is masked: its output is 0, or it attends evenly to all that it may see (what published code does)."""
MODES: tuple[str, ...] = get_args(Mode)

States = list[tuple[Tensor, Tensor]]
"""Keys and values [batch, kv head, pos, d_head] of every layer."""
Look = Callable[[int, Tensor], None]
"""Called with a layer and its attention probabilities [batch, head, query, key]."""

Stop = Callable[[Sequence[int], int], bool]
"""Called with what was said so far and the next token: whether the answer ends before it."""


@dataclass(frozen=True)
class Changed:
    """The model's attention with some heads masked, shown to whom it concerns."""

    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)
    """By layer: masked heads."""
    mode: str = "zero"
    """How they are masked."""
    look: Look | None = None
    """Who sees the probabilities."""

    @classmethod
    def of(cls, heads: Sequence[tuple[int, int]], mode: str) -> "Changed":
        """These (layer, head) masked."""
        if mode not in MODES:
            raise unknown_name("mode", mode, MODES)
        layers = sorted({layer for layer, _ in heads})
        return cls({layer: [h for at, h in heads if at == layer] for layer in layers}, mode)

    def __call__(self, asked: Asked, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Z of every head."""
        masked = list(self.heads.get(asked.layer, ()))
        if masked and self.mode == "even":
            query = query.clone()
            query[:, masked] = 0  # all scores are 0 then
        z, pattern = plain_attention(asked, query, key, value)
        if masked and self.mode == "zero":
            z[:, masked] = 0
        if self.look:
            self.look(asked.layer, pattern)
        return z


@dataclass(frozen=True, eq=False)
class Read:
    """Prompts of one length, read up to their last token."""

    cases: tuple[Case, ...]
    """The prompts."""
    rows: tuple[int, ...]
    """Which of all prompts they are."""
    states: States
    """Keys and values of all tokens but the last."""


@method
def read_prompts(
    setting: Setting, cases: Sequence[Case], *, attention: Changed | None = None, more: int = 0
) -> list[Read]:
    """All prompts, in batches of equal length. The text that they share is read once.

    `attention` changes how they are read, `more` is how many tokens shall follow. Raises `InputError` where the model
    has no positions for so many, `UnsupportedModelError` where its attention cannot be looked at, `MemoryBudgetError`
    where the keys and values of all prompts take more than the memory budget.
    """
    model, max_memory = setting.model, setting.max_memory
    check_replaceable(model)
    need = sum(len(case.ids) + more for case in cases) * 2 * model.heads.kv * model.heads.width * model.dtype.itemsize
    need *= len(model.blocks)
    if max_memory is not None and need > max_memory:
        raise MemoryBudgetError(
            f"Keys and values of {len(cases)} prompts take {need / 1e6:,.0f} MB beside the weights, the budget is "
            f"{max_memory / 1e6:,.0f} MB. Raise --max-memory, or give shorter --lengths or fewer --depths."
        )
    limit, longest = learned_positions(model), max(len(case.ids) for case in cases)
    if limit is not None and longest + more > limit:
        raise InputError(
            f"{model.name} has learned positions for {limit} tokens; a prompt of {longest} with an answer of {more} "
            f"needs {longest + more}. Give lengths of at most {limit - more}."
        )
    text = max((case.ids[: case.span[0]] for case in cases), key=len)
    with torch.no_grad(), _under(model, attention):
        shared = _read(model, [text], []) if text else []
        common = [_agree(case.ids[:-1], text) for case in cases]
        order = sorted(range(len(cases)), key=lambda row: (len(cases[row].ids), common[row], row))
        batches = []
        for _, same in groupby(order, key=lambda row: len(cases[row].ids)):
            parts, rows = [], []
            for start, group in groupby(same, key=lambda row: common[row]):
                some = list(group)
                before = [(k[:, :, :start], v[:, :, :start]) for k, v in shared] if start else []
                parts.append(_read(model, [cases[row].ids[start:-1] for row in some], before))
                rows += some
            states = [tuple(torch.cat(kind) for kind in zip(*layer, strict=True)) for layer in zip(*parts, strict=True)]
            batches.append(Read(tuple(cases[row] for row in rows), tuple(rows), states))  # type: ignore[arg-type]
    return batches


def greedy(
    model: Model, batch: Read, steps: int, *, attention: Changed | None = None, stopped: Stop
) -> list[list[int]]:
    """The likeliest token after each prompt, then after that, and so on; up to `steps`, or to where `stopped` says so.

    The token that stops a row is not in it. `attention.look` sees every step's probabilities of all rows.
    """
    length = len(batch.cases[0].ids)
    tokens = torch.tensor([[case.ids[-1]] for case in batch.cases], device=model.device)
    cache = Cache([_Growing(keys, values, steps) for keys, values in batch.states])
    answers: list[list[int]] = [[] for _ in batch.cases]
    open_rows = set(range(len(answers)))
    with torch.no_grad(), attending(model, attention or Changed()):
        for step in range(steps):
            at = torch.full_like(tokens, length - 1 + step)
            mask = tokens.new_ones(len(tokens), length + step)
            tokens = model.logits(Inputs(tokens, mask, at, at.new_zeros(len(at)), cache)).argmax(-1, keepdim=True)
            for row in sorted(open_rows):
                token = int(tokens[row])
                if stopped(answers[row], token):
                    open_rows.discard(row)
                else:
                    answers[row].append(token)
            if not open_rows:
                break
    return answers


def answer_log_probs(model: Model, batch: Read, *, attention: Changed | None = None) -> Float[Tensor, " batch"]:
    """Mean log-probability in nats of the expected answer's tokens, each after the true ones before it; float32."""
    cases, length = batch.cases, len(batch.cases[0].ids)
    longest = max(len(case.answer_ids) for case in cases)
    ids = torch.zeros(len(cases), longest, dtype=torch.long)
    targets, real = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, case in enumerate(cases):
        n = len(case.answer_ids)
        ids[row, :n] = torch.tensor((case.ids[-1], *case.answer_ids[:-1]))
        targets[row, :n], real[row, :n] = torch.tensor(case.answer_ids), 1
    ids, targets, real = (one.to(model.device) for one in (ids, targets, real))
    mask = torch.cat([real.new_ones(len(cases), length - 1), real], 1)
    at = (length - 1 + torch.arange(longest, device=ids.device)).expand_as(ids)
    cache = Cache([FrozenLayer(keys, values) for keys, values in batch.states])
    with torch.no_grad(), attending(model, attention or Changed()):
        logits = model.every_logits(Inputs(ids, mask, at, real.sum(1) - 1, cache)).float()
    found = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return (found * real).sum(1) / real.sum(1)


def at_line_end(model: Model) -> Stop:
    """Whether a token ends an answer: it ends a text, or breaks the line after something was said.

    Published code also stops at a line break in front of the answer; many models begin with one.
    """
    stops: Any = getattr(model.hf.generation_config, "eos_token_id", None)
    ends = {stops} if isinstance(stops, int) else set(stops or ())
    ends.add(getattr(model.tokenizer, "eos_token_id", None))

    def stop(said: Sequence[int], token: int) -> bool:
        return token in ends or ("\n" in model.decode([token]) and bool(model.decode(said).strip()))

    return stop


class _Growing(DynamicLayer):
    """A layer of a cache with room for some more tokens, so that none is copied when one is added."""

    def __init__(self, keys: Tensor, values: Tensor, room: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.used = keys.shape[-2]
        self.store = [torch.cat([x, x.new_zeros(*x.shape[:2], room, x.shape[-1])], -2) for x in (keys, values)]
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values so far."""
        start, self.used = self.used, self.used + key_states.shape[-2]
        for store, states in zip(self.store, (key_states, value_states), strict=True):
            store[:, :, start : self.used] = states
        self.keys, self.values = (store[:, :, : self.used] for store in self.store)
        return self.keys, self.values


def _read(model: Model, suffixes: Sequence[Sequence[int]], before: States) -> States:
    """Keys and values of equally long suffixes behind one text whose states are `before`, that text included."""
    ids = torch.tensor([list(suffix) for suffix in suffixes], device=model.device)
    layers: list[Any] = [DynamicLayer() for _ in model.blocks]
    start = before[0][0].shape[-2] if before else 0
    for layer, (keys, values) in zip(layers, before, strict=False):
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = (x.expand(len(ids), -1, -1, -1) for x in (keys, values))
    at = torch.arange(start, start + ids.shape[1], device=ids.device).expand_as(ids)
    mask = ids.new_ones(len(ids), start + ids.shape[1])
    model.logits(Inputs(ids, mask, at, ids.new_zeros(len(ids)), Cache(layers)))
    return [(layer.keys, layer.values) for layer in layers]


def _agree(ids: Sequence[int], text: Sequence[int]) -> int:
    """How many first tokens both have in common, one of `ids` left out at least."""
    pairs = enumerate(zip(ids, text, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ids) - 1, len(text)))


def _under(model: Model, attention: Changed | None) -> AbstractContextManager[None]:
    return nullcontext() if attention is None else attending(model, attention)
