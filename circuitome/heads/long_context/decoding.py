"""Prompts prefilled once, their keys kept; answers decoded or scored from there, with attention watched or masked."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from circuitome.engine.setting import Setting, method
from circuitome.errors import MemoryBudgetError
from circuitome.heads.long_context.needles import NeedlePrompt
from circuitome.heads.long_context.streaming import check_positions
from circuitome.models.attention import AttentionCall, attending, check_replaceable, plain_attention
from circuitome.models.inputs import FrozenLayer, Inputs
from circuitome.models.model import Model

Mode = Literal["zero", "even"]
"""How a head is masked: its output is 0, or it attends evenly to all that it may see (what published code does)."""
MODES: tuple[str, ...] = get_args(Mode)

Head = tuple[int, int]
"""Layer and head."""
States = list[tuple[Tensor, Tensor]]
"""Keys and values [batch, kv head, pos, d_head] of every layer."""
WatchPatterns = Callable[[int, Tensor], None]
"""Called with a layer and its attention probabilities [batch, head, query, key]."""
EndsAnswer = Callable[[Sequence[int], int], bool]
"""Called with what was said so far and the next token: whether the answer ends before it."""


@dataclass(frozen=True)
class MaskedAttention:
    """The model's attention with some heads masked, its probabilities shown to whoever watches."""

    heads: Sequence[Head] = ()
    """Masked (layer, head)."""
    mode: str = "zero"
    """How they are masked, a name in `MODES`."""
    watch: WatchPatterns | None = None
    """Who sees the probabilities."""

    def __call__(self, call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Z of every head."""
        masked = [head for layer, head in self.heads if layer == call.layer]
        if masked and self.mode == "even":
            query = query.clone()
            query[:, masked] = 0  # all scores are 0 then
        z, pattern = plain_attention(call, query, key, value)
        if masked and self.mode == "zero":
            z[:, masked] = 0
        if self.watch:
            self.watch(call.layer, pattern)
        return z


PLAIN = MaskedAttention()
"""Attention with no head masked."""


@dataclass(frozen=True, eq=False)
class Prefilled:
    """Prompts of one length whose tokens, all but the last, are in a cache."""

    prompts: tuple[NeedlePrompt, ...]
    """The prompts."""
    rows: tuple[int, ...]
    """Which of all prompts they are."""
    states: States
    """Keys and values of all tokens but the last."""


@method
def prefill(
    setting: Setting, prompts: Sequence[NeedlePrompt], *, attention: MaskedAttention | None = None, more: int = 0
) -> list[Prefilled]:
    """All prompts, in batches of equal length. The text that they share is read once.

    `attention` changes how they are read, `more` is how many tokens shall follow. Raises `InputError` where the model
    has no positions for so many, `UnsupportedModelError` where its attention cannot be looked at, `MemoryBudgetError`
    where the keys and values of all prompts take more than the memory budget.
    """
    model = setting.model
    check_replaceable(model)
    _check_memory(setting, prompts, more)
    longest = max(len(prompt.ids) for prompt in prompts)
    needs = f"a prompt of {longest} with an answer of {more} needs {longest + more}"
    check_positions(model, longest + more, needs, "Give lengths of at most {}.", longest)
    text = max((prompt.ids[: prompt.span[0]] for prompt in prompts), key=len)
    with torch.no_grad(), attending(model, attention) if attention else nullcontext():
        shared = _states_behind(model, [text], []) if text else []
        common = [_agree(prompt.ids[:-1], text) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row].ids), common[row], row))
        batches = []
        for _, same in groupby(order, key=lambda row: len(prompts[row].ids)):
            parts, rows = [], []
            for start, group in groupby(same, key=lambda row: common[row]):
                some = list(group)
                before = [(k[:, :, :start], v[:, :, :start]) for k, v in shared] if start else []
                parts.append(_states_behind(model, [prompts[row].ids[start:-1] for row in some], before))
                rows += some
            layers = (zip(*layer, strict=True) for layer in zip(*parts, strict=True))
            states = [(torch.cat(keys), torch.cat(values)) for keys, values in layers]
            batches.append(Prefilled(tuple(prompts[row] for row in rows), tuple(rows), states))
    return batches


def greedy(
    model: Model, batch: Prefilled, steps: int, *, attention: MaskedAttention = PLAIN, ends: EndsAnswer
) -> list[list[int]]:
    """The likeliest token after each prompt, then after that, and so on; up to `steps`, or to where `ends` says so.

    The token that ends a row is not in it. `attention.watch` sees every step's probabilities of all rows.
    """
    length = len(batch.prompts[0].ids)
    tokens = torch.tensor([[prompt.ids[-1]] for prompt in batch.prompts], device=model.device)
    cache = Cache([_Growing(keys, values, steps) for keys, values in batch.states])
    answers: list[list[int]] = [[] for _ in batch.prompts]
    open_rows = set(range(len(answers)))
    with torch.no_grad(), attending(model, attention):
        for step in range(steps):
            at = torch.full_like(tokens, length - 1 + step)
            mask = tokens.new_ones(len(tokens), length + step)
            tokens = model.logits(Inputs(tokens, mask, at, at.new_zeros(len(at)), cache)).argmax(-1, keepdim=True)
            for row in sorted(open_rows):
                token = int(tokens[row])
                if ends(answers[row], token):
                    open_rows.discard(row)
                else:
                    answers[row].append(token)
            if not open_rows:
                break
    return answers


def answer_log_probs(model: Model, batch: Prefilled, *, attention: MaskedAttention = PLAIN) -> Float[Tensor, " batch"]:
    """Mean log-probability in nats of the expected answer's tokens, each after the true ones before it; float32."""
    length = len(batch.prompts[0].ids)
    answers = [torch.tensor(prompt.answer_ids, device=model.device) for prompt in batch.prompts]
    targets = pad_sequence(answers, batch_first=True)
    real = pad_sequence([torch.ones_like(answer) for answer in answers], batch_first=True)
    last = targets.new_tensor([[prompt.ids[-1]] for prompt in batch.prompts])
    ids = torch.cat([last, targets[:, :-1]], 1) * real
    mask = torch.cat([real.new_ones(len(ids), length - 1), real], 1)
    at = (length - 1 + torch.arange(ids.shape[1], device=ids.device)).expand_as(ids)
    cache = Cache([FrozenLayer(keys, values) for keys, values in batch.states])
    with torch.no_grad(), attending(model, attention):
        logits = model.every_logits(Inputs(ids, mask, at, real.sum(1) - 1, cache)).float()
    log_probs = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    return (log_probs * real).sum(1) / real.sum(1)


def at_line_end(model: Model) -> EndsAnswer:
    """Whether a token ends an answer: it ends a text, or breaks the line after something was said.

    Published code also stops at a line break in front of the answer; many models begin with one.
    """
    stops: Any = getattr(model.hf.generation_config, "eos_token_id", None)
    text_ends = {stops} if isinstance(stops, int) else set(stops or ())
    text_ends.add(getattr(model.tokenizer, "eos_token_id", None))

    def ends(said: Sequence[int], token: int) -> bool:
        return token in text_ends or ("\n" in model.decode([token]) and bool(model.decode(said).strip()))

    return ends


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


def _check_memory(setting: Setting, prompts: Sequence[NeedlePrompt], more: int) -> None:
    model, budget = setting.model, setting.max_memory
    need = sum(len(prompt.ids) + more for prompt in prompts) * 2 * model.heads.kv * model.heads.width
    need *= model.dtype.itemsize * len(model.blocks)
    if budget is not None and need > budget:
        raise MemoryBudgetError(
            f"Keys and values of {len(prompts)} prompts take {need / 1e6:,.0f} MB beside the weights, the budget is "
            f"{budget / 1e6:,.0f} MB. Raise --max-memory, or give shorter --lengths or fewer --depths."
        )


def _states_behind(model: Model, suffixes: Sequence[Sequence[int]], before: States) -> States:
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
