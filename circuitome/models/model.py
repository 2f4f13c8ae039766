"""A Hugging Face causal language model with its residual stream in view. The model itself is never changed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from circuitome.errors import InputError, UnsupportedModelError
from circuitome.graph.model_graph import Graph
from circuitome.models.block import Block, Heads
from circuitome.models.families import Family, family_of
from circuitome.models.norms import Norm

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments that a block gives its attention besides the hidden states: masks, rotary tables, cache."""


@dataclass
class ActivationCache:
    """What one forward pass showed: tensors of the pass itself, not copies. Lists are indexed by layer."""

    resid_pre: list[Tensor] = field(default_factory=list)
    """Residual [batch, pos, d_model] that each attention reads, before its norm."""
    projected: list[list[Tensor]] = field(default_factory=list)
    """Outputs [batch, pos, out] of the q, k, v (or fused) projections."""
    z: list[Tensor] = field(default_factory=list)
    """Input [batch, pos, head * d_head] of the output projection: all heads side by side."""
    attention_out: list[Tensor] = field(default_factory=list)
    """Output [batch, pos, d_model] of the output projection where a post-norm follows; else empty."""
    resid_mid: list[Tensor] = field(default_factory=list)
    """Residual [batch, pos, d_model] that each MLP reads, before its norm."""
    mlp_out: list[Tensor] = field(default_factory=list)
    """What each MLP adds to the stream [batch, pos, d_model]."""
    final: Tensor | None = None
    """Residual [batch, pos, d_model] in front of the final norm."""
    logits: Tensor | None = None
    """Logits [batch, vocab] at the position that was asked for."""


class FrozenLayer(DynamicLayer):
    """A layer of a key/value cache that answers with its prefix and the new states, and keeps only the prefix.

    So one prefix serves any number of forward passes. Sliding windows need no other layer: the mask sees to them.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys: Tensor = keys
        self.values: Tensor = values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Prefix and new states, joined along the positions."""
        return torch.cat([self.keys, key_states], -2), torch.cat([self.values, value_states], -2)


class _OnePass(DynamicLayer):
    """A layer of a cache for one forward pass, which keeps what it is given instead of a copy."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states, value_states
        return key_states, value_states


@dataclass(frozen=True)
class Inputs:
    """Token ids of a batch, behind an optional prefix that is already in a cache."""

    ids: Int[Tensor, "batch pos"]
    """Token ids, padded on the right."""
    mask: Int[Tensor, "batch total"]
    """1 at real tokens, over prefix and `ids`; the prefix is padded on the left."""
    positions: Int[Tensor, "batch pos"]
    """Position of each token in its prompt."""
    read: Int[Tensor, " batch"]
    """Index into `ids` of the token after which the logits are read."""
    cache: Cache | None = None
    """Frozen keys and values of the prefix."""

    @classmethod
    def whole(cls, ids: Int[Tensor, "batch pos"]) -> "Inputs":
        """Prompts of one length, unpadded, read at the last token."""
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return cls(ids, torch.ones_like(ids), positions, torch.full_like(ids[:, 0], ids.shape[1] - 1))

    def joined(self, *others: "Inputs") -> "Inputs":
        """This batch and `others` behind it, all of one padded shape."""
        parts = (self, *others)
        if not others:
            return self
        cache = None
        if self.cache is not None:
            layers: list[Any] = list(zip(*(part.cache.layers for part in parts if part.cache), strict=True))
            cache = Cache([FrozenLayer(*(torch.cat(kv) for kv in _keys_values(layer))) for layer in layers])
        return Inputs(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.mask for part in parts]),
            torch.cat([part.positions for part in parts]),
            torch.cat([part.read for part in parts]),
            cache,
        )

    def real(self) -> Float[Tensor, "batch pos"]:
        """1.0 at real tokens of `ids`, 0.0 at padding."""
        return self.mask[:, -self.ids.shape[1] :].float()


def _keys_values(layers: Sequence[Any]) -> tuple[list[Tensor], list[Tensor]]:
    return [layer.keys for layer in layers], [layer.values for layer in layers]


class _Stop(Exception):
    """Ends a forward pass whose rest nobody needs."""


class Model:
    """A causal language model, its tokenizer, and where its readers and writers are.

    Weights are the model's own; hooks and replaced forwards live only inside the context managers below.
    """

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str) -> None:
        """Describe `hf`. Raises `UnsupportedModelError` for an architecture without a row in `FAMILIES`."""
        self.hf = hf
        self.tokenizer = tokenizer
        self.name = name
        self.family: Family = family_of(hf.config)
        config: Any = hf.config
        n_heads: int = config.num_attention_heads
        n_kv: int = getattr(config, "num_key_value_heads", None) or n_heads
        self.d_model: int = config.hidden_size
        heads = Heads(n_heads, n_kv, getattr(config, "head_dim", None) or self.d_model // n_heads)
        layers = attrgetter(self.family.layers)(hf)
        self.blocks = tuple(Block.of(layer, self.family, heads) for layer in layers)
        self.final_norm = Norm.of(attrgetter(self.family.final_norm)(hf), self.family.gain_offset)
        self.heads = heads
        self.graph = Graph(len(self.blocks), heads.q, heads.kv, parallel=self.family.parallel(config))
        self.held: dict[int, list[tuple[list[int], Tensor]]] = {}
        """By block with a post-norm: heads whose scaled outputs are held at a value, inside `replace_outputs`."""

    def __repr__(self) -> str:
        return f"Model({self.name}, {self.hf.config.model_type}, {self.graph.n_edges} edges, {self.dtype})"

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one."""
        return bool(getattr(self.hf.config, "is_causal", True))

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return next(self.hf.get_input_embeddings().parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights."""
        return self.hf.dtype

    @cached_property
    def unembedding(self) -> nn.Module:
        """The language-model head."""
        return self.hf.get_output_embeddings()  # type: ignore[no-any-return]

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens as the tokenizer adds them by default."""
        return self._ids(text)

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of a continuation, without special tokens."""
        return self._ids(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._need_tokenizer().decode(list(ids)))

    def _ids(self, text: str, **options: bool) -> list[int]:
        tokenizer = self._need_tokenizer()
        try:
            return list(tokenizer(text, **options).input_ids)
        except Exception as error:  # of no narrower type: a word that a tokenizer without an unknown token lacks
            raise InputError(f"The tokenizer of {self.name} cannot spell {text!r}: {error}.") from None

    def _need_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InputError(
                f"{self.name} was loaded without a tokenizer, and this needs one. Use load(model, tokenizer=...)."
            )
        return self.tokenizer

    def bytes_per_token(self, *, gradients: bool) -> int:
        """About how much memory one token of a batch takes while recorded, and with what autograd keeps for it.

        Counted in numbers a block: what the activations hold, or, with gradients, also what norms,
        projections, rotary and the MLP save for the backward pass. Measured on SmolLM2: 2.0 MB a token with gradients.
        """
        width = getattr(self.hf.config, "intermediate_size", None) or 4 * self.d_model
        attention = self.heads.readers * self.heads.width
        numbers = 6 * self.d_model + attention
        if gradients:
            numbers += 4 * width + 10 * self.d_model + 3 * attention
        return len(self.blocks) * numbers * max(4, self.dtype.itemsize)

    def logits(self, inputs: Inputs) -> Float[Tensor, "batch vocab"]:
        """Logits after the token at `inputs.read`, from the plain model."""
        with self._only_at(inputs.read):
            return self._call(inputs).logits[:, 0]  # type: ignore[no-any-return]

    def every_logits(self, inputs: Inputs) -> Float[Tensor, "batch pos vocab"]:
        """Logits after every token of `inputs`, from the plain model."""
        return self._call(inputs).logits  # type: ignore[no-any-return]

    def record(self, inputs: Inputs, *, logits: bool = True, start: int = 0, whole: bool = True) -> ActivationCache:
        """One forward pass and what it showed. Without `logits` the pass ends before the final norm.

        They begin at position `start`; what comes before is not kept. Without `whole` the last MLP runs only at
        `inputs.read`, after which nothing else of it is read, and is 0 elsewhere.
        """
        activations = ActivationCache()
        with ExitStack() as stack:
            stack.enter_context(self._recording(activations, start))
            stack.enter_context(self._only_at(inputs.read) if logits else self._ending_at_final_norm())
            if not whole:
                stack.enter_context(self._last_mlp_only_at(inputs.read))
            output = self._call(inputs)
            if output is not None:
                activations.logits = output.logits[:, 0]
        return activations

    def embeddings(self, inputs: Inputs) -> Float[Tensor, "batch pos d_model"]:
        """What the `embed` node writes: the residual in front of block 0."""
        found: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            found.append(_hidden(args, kwargs))
            raise _Stop

        with ExitStack() as stack:
            stack.callback(self.blocks[0].layer.register_forward_pre_hook(stop, with_kwargs=True).remove)
            self._call(inputs)
        return found[0]

    def prefix_cache(self, inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [batch, kv head, pos, d_head] of every layer for the tokens of `inputs`."""
        cache = self.new_cache()
        last = self.blocks[-1].output

        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Stop  # the last layer's keys are in the cache by now

        with ExitStack() as stack:
            stack.callback(last.register_forward_pre_hook(stop).remove)
            self._call(replace(inputs, cache=cache))
        return [(layer.keys, layer.values) for layer in cache.layers]

    @staticmethod
    def new_cache() -> Any:
        """An empty cache that keeps all keys and values of one pass; sliding windows are the mask's business."""
        return Cache(layer_class_to_replicate=_OnePass)

    def attention_calls(self, inputs: Inputs) -> list[Call]:
        """How each block would call its attention on `inputs`, from a pass that runs no block's parts."""
        calls: list[Call] = []

        def note(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls.append((args[1:] if args else (), rest))
            return torch.zeros_like(_hidden(args, kwargs)), None

        with torch.no_grad(), ExitStack() as stack:
            for block in self.blocks:
                stack.enter_context(replaced(block.attention, note))
                for module in (*block.mlp, *block.norms):
                    stack.enter_context(replaced(module, lambda x: x))
            stack.enter_context(self._ending_at_final_norm())
            self._call(inputs)
        return calls

    @contextmanager
    def watching_attention(self, look: Callable[[int, Float[Tensor, "batch head query key"]], None]) -> Iterator[None]:
        """Inside, every forward pass shows the attention probabilities of each block: `look(layer, pattern)`.

        Rows sum to 1 over keys; keys of a prefix in a cache come first. The model computes them in the open for that
        (eager attention), block after block, so that one block's pattern is held at a time unless `look` keeps it.
        Raises `UnsupportedModelError` for a model that gives no attention probabilities.
        """

        def shown(layer: int) -> Callable[..., None]:
            return lambda module, args, output: look(layer, self._probabilities(layer, output))

        with ExitStack() as stack:
            stack.enter_context(self.eager_attention())
            for layer, block in enumerate(self.blocks):
                stack.callback(block.attention.register_forward_hook(shown(layer)).remove)
            yield

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Inside, the model computes its attention probabilities in the open. Entering walks over all modules."""
        before = self.hf.config._attn_implementation
        switch = isinstance(before, str) and before != "eager"
        if switch:
            self.hf.set_attn_implementation("eager")
        try:
            yield
        finally:
            if switch:
                self.hf.set_attn_implementation(before)

    @contextmanager
    def starting_from(self, resid: Float[Tensor, "batch pos d_model"]) -> Iterator[None]:
        """Inside, every forward pass starts block 0 from `resid` in place of the embeddings."""

        def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _with_hidden(resid, args, kwargs)

        handle = self.blocks[0].layer.register_forward_pre_hook(put, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def writing_attention(self, layer: int, out: Float[Tensor, "batch pos d_model"]) -> AbstractContextManager[None]:
        """Inside, what the attention of a block adds to the stream is `out`."""
        block = self.blocks[layer]
        return _writing(block.attention_post.module if block.attention_post else block.output, out)

    def writing_mlp(self, layer: int, out: Float[Tensor, "batch pos d_model"]) -> AbstractContextManager[None]:
        """Inside, what the MLP of a block adds to the stream is `out`."""
        block = self.blocks[layer]
        return _writing(block.mlp_ends[1], out)

    @contextmanager
    def frozen_parameters(self) -> Iterator[None]:
        """Inside, parameters take no gradients; afterwards each is as it was."""
        wanted = [p for p in self.hf.parameters() if p.requires_grad]
        for p in wanted:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in wanted:
                p.requires_grad_(True)

    def attend(
        self, layer: int, values: Float[Tensor, "batch pos reader d_head"], call: Call
    ) -> Float[Tensor, "batch pos head d_head"]:
        """The z of every head for given q, k and v: the model's own attention, called as the block would."""
        return self._attend(layer, values, call)[0]

    def attention_pattern(
        self, layer: int, values: Float[Tensor, "batch pos reader d_head"], call: Call
    ) -> Float[Tensor, "batch head query key"]:
        """The attention probabilities of one block for given q, k and v; `call` was noted under `eager_attention`.

        Rows sum to 1 over keys. Raises `UnsupportedModelError` for a model that gives no attention probabilities.
        """
        with self.eager_attention():
            return self._probabilities(layer, self._attend(layer, values, call)[1])

    def _attend(self, layer: int, values: Tensor, call: Call) -> tuple[Tensor, Any]:
        """The z of every head, and what the attention module gave."""
        block = self.blocks[layer]
        parts = block.merge(values)
        found: list[Tensor] = []

        def keep(z: Tensor) -> Tensor:
            found.append(z)
            return z.new_zeros(*z.shape[:-1], self.d_model)

        args, kwargs = call
        hidden = values.new_empty(()).expand(*values.shape[:2], self.d_model)
        with ExitStack() as stack:
            for module, part in zip(block.projections, parts, strict=True):
                stack.enter_context(replaced(module, lambda _, part=part: part))
            stack.enter_context(replaced(block.output, keep))
            output = block.attention(hidden, *args, **kwargs)
        return found[0].unflatten(-1, (self.heads.q, self.heads.width)), output

    def _probabilities(self, layer: int, output: Any) -> Float[Tensor, "batch head query key"]:
        """The pattern in what an attention module gave."""
        pattern = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if pattern is None:
            raise UnsupportedModelError(
                f"{self.name} ({self.hf.config.model_type}) gives no attention probabilities at a{layer}, even "
                "with eager attention. Methods that read attention patterns cannot be used on it."
            )
        return pattern

    def unembed(
        self, resid: Float[Tensor, "batch d_model"], tokens: Sequence[int] | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of a final residual, of all tokens or of some: final norm, unembedding, soft cap."""
        normed = self.final_norm.module(resid)
        if tokens is None:
            logits = self.unembedding(normed)
        else:
            bias: Any = getattr(self.unembedding, "bias", None)
            weight: Any = self.unembedding.weight
            logits = nn.functional.linear(normed, weight[tokens], None if bias is None else bias[tokens])
        cap = getattr(self.hf.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap  # type: ignore[no-any-return]

    def _call(self, inputs: Inputs) -> Any:
        """The model's own forward; None where a hook ended the pass early."""
        with self._without_dropout():
            try:
                return self.hf(
                    input_ids=inputs.ids,
                    attention_mask=inputs.mask,
                    position_ids=inputs.positions,
                    past_key_values=inputs.cache,
                    use_cache=inputs.cache is not None,
                )
            except _Stop:
                return None

    @contextmanager
    def _without_dropout(self) -> Iterator[None]:
        """Inside, every module is in evaluation mode; afterwards each is as it was."""
        training = [module for module in self.hf.modules() if module.training] if self.hf.training else []
        self.hf.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True

    @contextmanager
    def _only_at(self, read: Int[Tensor, " batch"]) -> Iterator[None]:
        """Inside, the unembedding sees one position a prompt."""
        rows = torch.arange(len(read), device=read.device)

        def pick(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return (args[0][rows, read][:, None], *args[1:])

        handle = self.unembedding.register_forward_pre_hook(pick)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _last_mlp_only_at(self, read: Int[Tensor, " batch"]) -> Iterator[None]:
        """Inside, the last block's MLP runs at one position a prompt and gives 0 at the others."""
        first, last = self.blocks[-1].mlp_ends
        enter, leave = first.forward, last.forward
        rows, shape = torch.arange(len(read), device=read.device), torch.Size()

        def pick(x: Tensor) -> Tensor:
            nonlocal shape
            shape = x.shape
            return enter(x.view(len(read), -1, shape[-1])[rows, read][:, None])

        def put(x: Tensor) -> Tensor:
            out = leave(x)
            return (
                torch.zeros_like(out)
                .expand(-1, shape.numel() // out.numel(), -1)
                .index_put((rows, read), out[:, 0])
                .view(shape)
            )

        with replaced(first, pick), replaced(last, put):
            yield

    @contextmanager
    def _ending_at_final_norm(self) -> Iterator[None]:
        def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
            raise _Stop

        handle = self.final_norm.module.register_forward_pre_hook(stop)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _recording(self, activations: ActivationCache, start: int) -> Iterator[None]:
        with ExitStack() as stack:
            for block in self.blocks:
                for remove in _record_block(block, activations, start):
                    stack.callback(remove)

            def final(module: nn.Module, args: tuple[Any, ...]) -> Any:
                seen = args[0].view_as(args[0])
                activations.final = _from(start, seen)
                return (seen, *args[1:])

            stack.callback(self.final_norm.module.register_forward_pre_hook(final, prepend=True).remove)
            yield


def _from(start: int, t: Tensor) -> Tensor:
    """`t` [batch, pos, ...] from a position on; a copy, so that the rest can be freed, unless it is all."""
    return t[:, start:].clone() if start else t


def _record_block(block: Block, activations: ActivationCache, start: int) -> list[Any]:
    """Install the hooks that write one block's values on the activations; gives what removes them.

    The tensors that q, k, v and the MLP read are recorded as views of their own, so that a gradient taken with respect
    to one of them comes through that reader alone and not through the residual connection beside it.
    """
    projected: list[Tensor] = []

    def resid_pre(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module is block.projections[0] or block.attention_norm is not None:
            activations.resid_pre.append(_from(start, args[0]))

    def projection(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        projected.append(_from(start, output))
        if len(projected) == len(block.projections):
            activations.projected.append(list(projected))
            projected.clear()

    def output_in(module: nn.Module, args: tuple[Any, ...]) -> None:
        activations.z.append(_from(start, args[0]))

    def output_out(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        activations.attention_out.append(_from(start, output))

    def resid_mid(module: nn.Module, args: tuple[Any, ...]) -> Any:
        shaped = args[0].view(len(activations.z[-1]), -1, args[0].shape[-1])  # OPT flattens batch and position here
        activations.resid_mid.append(_from(start, shaped))
        return (shaped.view_as(args[0]), *args[1:])

    def mlp_out(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        activations.mlp_out.append(_from(start, output.reshape(len(activations.z[-1]), -1, output.shape[-1])))

    first_mlp, last_mlp = block.mlp_ends
    first_attention = block.attention_norm.module if block.attention_norm else block.projections[0]
    handles = [
        first_attention.register_forward_pre_hook(resid_pre),
        *(module.register_forward_hook(projection) for module in block.projections),
        block.output.register_forward_pre_hook(output_in),
        *([block.output.register_forward_hook(output_out)] if block.attention_post else []),
        first_mlp.register_forward_pre_hook(resid_mid),
        last_mlp.register_forward_hook(mlp_out),
    ]
    return [handle.remove for handle in handles]


@contextmanager
def replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """Inside, `module(x)` gives `forward(x)`; whatever forward the instance had before comes back."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


@contextmanager
def _writing(module: nn.Module, out: Tensor) -> Iterator[None]:
    handle = module.register_forward_hook(lambda module, args, output: out.view_as(output))
    try:
        yield
    finally:
        handle.remove()


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]  # type: ignore[no-any-return]


def _with_hidden(
    hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ((hidden, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})
