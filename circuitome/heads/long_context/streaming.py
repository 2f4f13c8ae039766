"""Loss of a stream of tokens under a key/value cache that keeps the first few and the latest tokens.

Keys are cached before their rotation; a token's position is its index in the cache, so that distances shrink when
something is evicted (Xiao et al. 2023, arXiv:2309.17453, section 3.2; mit-han-lab/streaming-llm:
streaming_llm/pos_shift/modify_llama.py). The definition goes token by token. Here chunks run at once, exactly: what a
token caches never depends on later evictions, a query's index distance to a key of its window is the true one,
and to sink j it is min(t, sinks + window - 1) - j. So one pass with two rotations of each query, and a mask, gives the
same scores.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.models import attention
from circuitome.models.hooks import hooked
from circuitome.models.inputs import Inputs
from circuitome.models.model import Model

CHUNK = 256
"""Tokens of a pass."""
CHANGING = ("dynamic", "longrope")
"""Rotary variants whose frequencies depend on the largest position."""


@method
def stream_losses(
    setting: Setting, ids: Int[Tensor, " pos"], *, sinks: int = 4, window: int = 256, chunk: int = CHUNK
) -> Float[Tensor, " pos-1"]:
    """Negative log-likelihood in nats of tokens 1, 2, ... of `ids`, each after all before it were fed one by one.

    The cache holds the first `sinks` tokens and the latest `window`, the newest included, so token t is the first to
    miss something when t = sinks + window. `sinks=0` is a plain sliding window. Positions are indices in the cache:
    rotary keys are rotated anew, and with learned positions a new token takes that of its index, the last one from
    then on. `chunk` tokens run at once; the result does not depend on it but for rounding. float32.

    Raises `InputError` for sizes that cannot be, `UnsupportedModelError` where attention cannot be replaced.
    Source: Xiao et al. 2023, arXiv:2309.17453, section 3.2.

    >>> model = cm.load("smollm2-135m")
    >>> tokens = torch.tensor(model.encode("The capital of France is Paris, and that of Italy is Rome."))
    >>> losses = cm.stream_losses(model, tokens, sinks=2, window=8)
    >>> losses.shape == (len(tokens) - 1,)
    True
    """
    model = setting.model
    check_stream(model, ids, sinks, window)
    chunk = max(1, min(chunk, _most_at_once(model, sinks, window), len(ids) - 1))
    rotated = model.learned_positions is None
    tables = attention.rotary_tables(model, torch.arange(max(sinks + window, window - 1 + chunk) if rotated else 1))
    cache = Cache([_Kept(sinks, window) for _ in model.blocks])
    losses = []
    with torch.no_grad(), _unrotated(model):
        for start, tokens in _chunks(setting, "streaming", ids, chunk):
            view = _View.of(start, len(tokens) - 1, sinks, window, model.device)
            with attention.attending(model, _Streamed(view, tables, model)):
                losses.append(_losses(model, tokens, view.at_sinks, len(view.keys), cache))
    return torch.cat(losses)


@method
def dense_losses(setting: Setting, ids: Int[Tensor, " pos"], *, chunk: int = 2 * CHUNK) -> Float[Tensor, " pos-1"]:
    """Negative log-likelihood in nats of tokens 1, 2, ... of `ids` by the plain model, whose cache keeps every token.

    What `stream_losses` is compared with; float32. `chunk` tokens run at once.
    Raises `InputError` for fewer than two tokens, or more than the model has learned positions for.

    >>> cm.dense_losses(cm.load("known-induction"), torch.arange(1, 17)).shape
    torch.Size([15])
    """
    model, held = setting.model, len(ids) - 1
    _check_text(ids)
    check_positions(model, held, f"the dense cache would hold {held}", "Give at most {} tokens.", len(ids))
    cache = Cache([DynamicLayer() for _ in model.blocks])
    losses = []
    with torch.no_grad():
        for start, tokens in _chunks(setting, "reading with every token kept", ids, chunk):
            end = start + len(tokens) - 1
            losses.append(_losses(model, tokens, torch.arange(start, end, device=model.device), end, cache))
    return torch.cat(losses)


def _chunks(setting: Setting, what: str, ids: Int[Tensor, " pos"], chunk: int) -> Iterator[tuple[int, Tensor]]:
    """Start and tokens of each chunk, and the token behind it, whose loss is the last of the chunk."""
    tell, n = setting.tell(what), len(ids) - 1
    for start in range(0, n, chunk):
        yield start, ids[start : start + chunk + 1].to(setting.model.device)
        tell(min(start + chunk, n), n)


def _losses(model: Model, tokens: Tensor, positions: Tensor, keys: int, cache: Cache) -> Float[Tensor, " query"]:
    """Loss of each of `tokens` but the first, read behind a cache so that `keys` tokens are there in all."""
    inputs = Inputs(tokens[None, :-1], tokens.new_ones(1, keys), positions[None], tokens.new_zeros(1), cache)
    return nn.functional.cross_entropy(model.every_logits(inputs)[0].float(), tokens[1:], reduction="none")


def check_stream(model: Model, ids: Int[Tensor, " pos"], sinks: int, window: int) -> None:
    """Raises `InputError` or `UnsupportedModelError` for what cannot be streamed."""
    check_sizes(sinks, window)
    _check_text(ids)
    if not model.causal:
        raise InputError(f"{model.name} is not causal: later tokens change earlier ones, so it cannot be streamed.")
    attention.check_replaceable(model)
    needs = f"a cache of {sinks} sinks and a window of {window} needs {sinks + window}"
    check_positions(model, sinks + window, needs, "Give a window of at most {}.", window)
    if changing := _changing_from(model):
        kind, original = changing
        if sinks + window > original:
            raise InputError(
                f"{model.name} changes its rotary frequencies ({kind}) from {original} positions on, so positions in a "
                f"cache of {sinks + window} tokens have no fixed meaning. Give a window of at most {original - sinks}."
            )


def check_sizes(sinks: int, window: int) -> None:
    """Raises `InputError` for numbers of sinks or a window that cannot be."""
    if sinks < 0:
        raise InputError(f"sinks is the number of first tokens that are kept and must be 0 or more, got {sinks}.")
    if window < 1:
        raise InputError(f"window is the number of latest tokens that are kept and must be 1 or more, got {window}.")


def _check_text(ids: Int[Tensor, " pos"]) -> None:
    if len(ids) < 2:
        raise InputError(f"A loss needs at least 2 tokens, got {len(ids)}.")


def check_positions(model: Model, n: int, needs: str, advice: str, value: int) -> None:
    """Raises `InputError` where a model with learned positions has fewer than `n`.

    `needs` says what takes so many; `advice`, with {} for a number, what to give in place of `value`.
    """
    limit = model.learned_positions
    if limit is not None and n > limit:
        raise InputError(
            f"{model.name} has learned positions for {limit} tokens; {needs}. {advice.format(value - (n - limit))}"
        )


def _changing_from(model: Model) -> tuple[str, int] | None:
    """Rotary variant and position from which on its frequencies change, for models that do that."""
    config: Any = model.hf.config
    rope: Any = getattr(config, "rope_parameters", None) or {}
    for variant in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if variant.get("rope_type") in CHANGING:
            original = variant.get("original_max_position_embeddings") or config.max_position_embeddings
            return str(variant["rope_type"]), int(original)
    return None


def _most_at_once(model: Model, sinks: int, window: int) -> int:
    """Tokens that may run at once: where frequencies change with positions, these must stay below that."""
    changing = _changing_from(model)
    return changing[1] - window + 1 if changing else CHUNK**2


@contextmanager
def _unrotated(model: Model) -> Iterator[None]:
    """Inside, the model's own rotations do nothing."""

    def still(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("position_embeddings") is None:
            return None
        cos, sin = kwargs["position_embeddings"]
        return args, {**kwargs, "position_embeddings": (torch.ones_like(cos), torch.zeros_like(sin))}

    with ExitStack() as stack:
        for block in model.blocks:
            stack.enter_context(hooked(block.attention.register_forward_pre_hook, still, with_kwargs=True))
        yield


class _Kept(DynamicLayer):
    """A layer of a cache that keeps, of what it was given, the sinks and all of the window but the next token."""

    def __init__(self, sinks: int, window: int) -> None:
        super().__init__()
        self.sinks, self.latest = sinks, window - 1

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values that a token of this chunk may see."""
        keys, values = super().update(key_states, value_states)
        self.keys, self.values = self._without_evicted(keys), self._without_evicted(values)
        return keys, values

    def _without_evicted(self, states: Tensor) -> Tensor:
        extra = states.shape[-2] - self.sinks - self.latest
        if extra <= 0:
            return states
        return torch.cat([states[..., : self.sinks, :], states[..., self.sinks + extra :, :]], -2)


@dataclass(frozen=True)
class _View:
    """What the queries of a chunk see of the keys that were kept and the chunk's own."""

    sinks: int
    """How many of the keys are sinks; they come first."""
    keys: Int[Tensor, " key"]
    """Token index of every key."""
    at_sinks: Int[Tensor, " query"]
    """Index of every query in its cache."""
    queries: Int[Tensor, " query"]
    """Position of every query relative to `base`."""
    base: int
    """Token index from which positions in the window are counted: rotations only know differences."""
    distance: Int[Tensor, "query key"]
    """Index of the query minus index of the key, both in the query's cache."""
    visible: Bool[Tensor, "query key"]
    """Whether the key is in the query's cache."""

    @classmethod
    def of(cls, start: int, length: int, sinks: int, window: int, device: torch.device) -> "_View":
        """The view of tokens start, ..., start + length - 1."""
        kept = torch.arange(start, device=device)
        if start > sinks + window - 1:
            kept = torch.cat([kept[:sinks], kept[start - window + 1 :]])
        chunk = torch.arange(start, start + length, device=device)
        keys, n = torch.cat([kept, chunk]), min(sinks, start + length)
        at_sinks = chunk.clamp(max=sinks + window - 1)
        distance = torch.cat([at_sinks[:, None] - keys[:n], chunk[:, None] - keys[n:]], 1)
        near = torch.cat([torch.ones_like(distance[:, :n]), distance[:, n:] < window], 1).bool()
        base = min([start, *keys[n:].tolist()])
        return cls(n, keys, at_sinks, chunk - base, base, distance, near & (keys <= chunk[:, None]))


@dataclass(frozen=True)
class _Streamed:
    """The attention of a chunk."""

    view: _View
    """What is seen."""
    tables: list[attention.Table | None]
    """Rotations of each block."""
    model: Model
    """Whose attention it is."""

    def __call__(self, call: attention.AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Z of every head, from queries and keys that are not rotated yet."""
        view, table = self.view, self.tables[call.layer]
        visible = view.visible if call.window is None else view.visible & (view.distance < call.window)
        if table is None:
            products = attention.by_group(query, key.shape[1], key.transpose(-1, -2))
        else:
            n = view.sinks
            near = self._products(table, query, view.queries, key[:, :, n:], view.keys[n:] - view.base)
            far = self._products(table, query, view.at_sinks, key[:, :, :n], view.keys[:n])
            products = torch.cat([far, near], -1)
        scores = call.capped(products).masked_fill(~visible, -torch.inf)
        return attention.mix(scores.softmax(-1, dtype=torch.float32).to(value.dtype), value)

    def _products(self, table: attention.Table, query: Tensor, at: Tensor, key: Tensor, where: Tensor) -> Tensor:
        """Products of queries at positions `at` and keys at positions `where`."""
        return attention.by_group(
            self._turned(table, query, at), key.shape[1], self._turned(table, key, where).transpose(-1, -2)
        )

    def _turned(self, table: attention.Table, x: Tensor, at: Tensor) -> Tensor:
        cos, sin = (part[:, at] for part in table)
        return attention.rotation(self.model)(x, x[:, :0], cos, sin)[0]
