"""A Hugging Face language model with its residual stream in view. The model itself is never changed."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

from circuitome.errors import InputError, UnsupportedModelError
from circuitome.graph.model_graph import Graph
from circuitome.graph.node import Node
from circuitome.models.activations import ActivationCache, recording
from circuitome.models.block import Block, Heads, weight_of
from circuitome.models.described import Described, Encoder
from circuitome.models.families import Family, family_of
from circuitome.models.hooks import hooked, replaced
from circuitome.models.inputs import Inputs, OnePassLayer
from circuitome.models.norms import Norm
from circuitome.models.parked import check_place, saved_elsewhere
from circuitome.models.placement import check_open, home_device, in_one_piece, parameter, settle, thin_forwards

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments that a block gives its attention besides the hidden states: masks, rotary tables, cache."""


SHOWN = 200
"""Characters of a text that a message shows."""
PATH_POINTS = 5
"""Points of an integrated path that a batch is made for."""
HeldHeads = tuple[list[int], Callable[[Tensor], Tensor]]
"""Some heads of a block, and a function of their scaled outputs [batch, pos, head, d_head] that gives the changed."""


class _Stop(Exception):
    """Ends a forward pass whose rest nobody needs."""


@runtime_checkable
class Edited(Protocol):
    """Changes of a model's behaviour."""

    def applied(self, model: "Model") -> AbstractContextManager[None]:
        """Inside, the model has the changes."""


@dataclass
class _Use:
    """Who uses a model's modules just now; the same for all views of one model."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    reservations: int = 0
    rows: tuple[tuple[int, ...], int] | None = None


class Model:
    """A language model, its tokenizer, and where its readers and writers are.

    Weights are the model's own, read when they are needed; hooks and replaced forwards live only inside the context
    managers below, and a second thread waits until they are gone.
    """

    def __init__(self, hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, name: str) -> None:
        """Describe `hf`. Raises `UnsupportedModelError` for an architecture without a row in `FAMILIES`."""
        self.hf = hf
        self.tokenizer = tokenizer
        self.name = name
        self.family: Family = family_of(hf.config)
        settle(hf, name)
        config: Any = hf.config
        n_heads: int = config.num_attention_heads
        n_kv: int = getattr(config, "num_key_value_heads", None) or n_heads
        self.d_model: int = config.hidden_size
        heads = Heads(n_heads, n_kv, getattr(config, "head_dim", None) or self.d_model // n_heads)
        layers = attrgetter(self.family.layers)(hf)
        self.blocks = tuple(Block.of(layer, self.family, heads) for layer in layers)
        self.final_norm = Norm(attrgetter(self.family.final_norm)(hf), self.family.gain_offset)
        self.heads = heads
        self.graph = Graph(len(self.blocks), heads.q, heads.kv, parallel=self.family.parallel(config))
        self.first_position = self.family.first_position(config)
        self.held: dict[int, list[HeldHeads]] = {}
        """By block with a post-norm: changes in force of its heads' scaled outputs, in the order in which they act."""
        self.described: dict[tuple[int, bool], Described] = {}
        """Features that are nodes, by block and by whether they stand for the stream behind it or for its MLP."""
        self.activations_on = "device"
        """Where recorded activations wait until they are used; see `with_activations_on`."""
        self._use = _Use()

    def with_neurons(self, neurons: Iterable[str | Node], *, apart: Iterable[int] = ()) -> "Model":
        """The same model with some neurons as nodes of its graph, m5.n123 with the input m5.n123.in.

        The node m5 is then what the other neurons of that MLP write together, and reads for them alone, so that the
        full circuit is still the model. In the blocks `apart`, m5 has no edges: what is not a node there is in no
        circuit. Nothing is copied: both views share weights and module hooks.

        >>> model = cm.load("tracr-reverse")
        >>> model.with_neurons(["m1.n0", "m1.n4"]).graph.n_edges - model.graph.n_edges
        26

        Raises `InputError` for a node that is no neuron of this model, and for a block that it has not.
        """
        view = copy(self)
        view.graph, view.described = self.graph.with_neurons(map(self.neuron, neurons), apart), {}
        return view

    def with_activations_on(self, place: str) -> "Model":
        """The same model whose recorded activations wait on the "cpu" or on "disk" until they are used, block by block.

        For prompts so long that what a pass shows does not fit on the device beside the weights. Results are the same
        up to rounding. Edge attribution (`eap`, `eap_ig`) also parks gradients and what autograd keeps. "disk" is the
        temporary folder (TMPDIR), also for a model on the CPU; "device" undoes it. Nothing is copied: both views share
        weights and module hooks.

        >>> model = cm.load("known-ioi").with_activations_on("disk")
        >>> round(cm.eap(model, cm.ground_truth.task("known-ioi", 16))["a2.h0->logits"], 1)
        -10.0

        Raises `UnknownNameError` for another place.
        """
        check_place(place)
        view = copy(self)
        view.activations_on = place
        return view

    def with_described(self, dictionary: Encoder, features: Iterable[int], fingerprint: str) -> "Model":
        """The same model with features of a dictionary on its device as nodes; see `cm.features.as_nodes`."""
        layer, stream = dictionary.place.layer, dictionary.place.site == "resid"
        node = Node("resid_pre", layer + 1) if stream else Node.mlp(layer)
        view = copy(self)
        view.graph = self.graph.with_features(node, features, fingerprint)
        which = view.graph.features_behind(layer) if stream else view.graph.neurons_of(layer)
        described = Described(dictionary, which, dictionary.W_dec[list(which)])
        view.described = {**self.described, (layer, stream): described}
        return view

    def part_weights(
        self, layer: int, parts: Sequence[int] | None = None, *, stream: bool = False
    ) -> Float[Tensor, "part d_model"]:
        """What each neuron or feature that is a node (or some, by their place) adds to the stream for a value of 1."""
        if (described := self.described.get((layer, stream))) is not None:
            return described.weights if parts is None else described.weights[list(parts)]
        nodes = self.graph.neurons_of(layer)
        return self.blocks[layer].neuron_weights(nodes if parts is None else [nodes[i] for i in parts])

    def neuron(self, name: str | Node) -> Node:
        """The neuron called `name`. Raises `InputError` for what is none of this model."""
        node = Node.neuron(name)
        if not self.graph.mlps:
            raise InputError(f"{self.name} has no MLPs, so it has no neurons.")
        if node.layer >= len(self.blocks):
            raise InputError(f"There is no {node}; {self.name} has layers 0 to {len(self.blocks) - 1}.")
        if node.index >= (count := self.blocks[node.layer].n_neurons):
            raise InputError(f"There is no {node}; m{node.layer} has neurons 0 to {count - 1}.")
        return node

    def __repr__(self) -> str:
        return f"Model({self.name}, {self.hf.config.model_type}, {self.graph.n_edges} edges, {self.dtype})"

    @property
    def causal(self) -> bool:
        """Whether no position sees a later one."""
        return not self.masked and bool(getattr(self.hf.config, "is_causal", True))

    @property
    def positions(self) -> int | None:
        """How many tokens a text may have; None where the configuration sets no limit."""
        limit = getattr(self.hf.config, "max_position_embeddings", None)
        return None if limit is None else limit - self.first_position

    @property
    def learned_positions(self) -> int | None:
        """How many positions the model has embeddings for; None where positions are rotations."""
        rotated = any(name.endswith("rotary_emb") for name, _ in self.hf.named_modules())
        return None if rotated else self.positions

    def _check_positions(self, inputs: Inputs) -> None:
        """Raises `InputError` where a text is longer than the table of learned positions.

        Before the pass, since on an accelerator an index outside a table ends the whole process.
        """
        if self.positions is None or inputs.mask.shape[1] <= self.positions:
            return
        length, limit = int(inputs.positions.max()) + 1, self.learned_positions
        if limit is not None and length > limit:
            raise InputError(
                f"The text has {length} tokens; {self.name} has learned positions for {limit}. Give a shorter one."
            )

    @property
    def masked(self) -> bool:
        """Whether it is a masked language model, such as BERT: of these, only attention and neurons are studied."""
        return self.family.masked

    def check_sums(self, what: str) -> None:
        """Raises `UnsupportedModelError` where parts do not add up to the stream, or the stream to logits.

        `what` is what cannot be done then, as the beginning of a sentence.
        """
        if self.masked:
            raise UnsupportedModelError(
                f"{what} cannot be done with {self.name} ({self.hf.config.model_type}): a masked language model says "
                "nothing of a next token, and this one's blocks normalise the stream after each sum, so that no part's "
                "share of it or of the logits is its own. Its attention, heads, neurons and syntax can be studied "
                "(circuitome heads, neurons, syntax); for the rest use a decoder."
            )

    def check_open(self, what: str) -> None:
        """Raises `InputError` where weights cannot be changed or copied: quantised, offloaded, on several devices.

        `what` needs that they can, as the beginning of a sentence. Reading them is always possible.
        """
        check_open(self.hf, self.name, what)

    def copied(self, what: str) -> "Model":
        """The same model with weights of its own. Raises as `check_open`."""
        self.check_open(what)
        return Model(deepcopy(self.hf), self.tokenizer, self.name)

    def in_one_piece(self) -> "Model":
        """A copy with ordinary weights of its own on one device, of a model quantised, offloaded or on several."""
        return Model(in_one_piece(self.hf), self.tokenizer, self.name)

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return home_device(self.hf)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's weights."""
        return self.hf.dtype

    @property
    def unembedding(self) -> Any:
        """The language-model head, a linear layer. Raises `UnsupportedModelError` for a masked language model."""
        self.check_sums("Reading tokens off the stream or off weights")
        return self.hf.get_output_embeddings()

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, special tokens as the tokenizer adds them by default.

        Raises `InputError` without a tokenizer, and for text with a word that it lacks.
        """
        return self._ids(text)

    def encode_answer(self, text: str) -> list[int]:
        """Token ids of a continuation, without special tokens. Raises as `encode`."""
        return self._ids(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids. Raises `InputError` without a tokenizer."""
        return str(self._need_tokenizer().decode(list(ids)))

    def _ids(self, text: str, **options: bool) -> list[int]:
        tokenizer = self._need_tokenizer()
        try:
            return list(tokenizer(text, **options).input_ids)
        except Exception as error:  # of no narrower type: a word that a tokenizer without an unknown token lacks
            shown = text if len(text) <= SHOWN else text[:SHOWN] + "..."
            raise InputError(f"The tokenizer of {self.name} cannot spell {shown!r}: {error}.") from None

    def _need_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InputError(
                f"{self.name} was loaded without a tokenizer, and this needs one. Use load(model, tokenizer=...)."
            )
        return self.tokenizer

    def bytes_per_token(self, *, gradients: bool, points: int = PATH_POINTS) -> int:
        """About how much memory one token of a batch takes while recorded, and with what autograd keeps for it.

        Counted in numbers a block. Without gradients, what the activations hold. With gradients: two recorded passes,
        clean and corrupted; what autograd saves at norms, projections, rotary and the MLP, part of it in float32
        whatever the model's dtype; and for an integrated path of `points` (0: none) the writers' values of its ends and
        the gradients at all readers, in float32. Within a tenth of the tensors that such passes make, for shapes of
        135M to 70B (tests/engine/test_meta.py).
        """
        width, d = self.mlp_width, self.d_model
        attention, z = self.heads.readers * self.heads.width, self.heads.q * self.heads.width
        size = max(4, self.dtype.itemsize)
        block = (6 * d + attention) * size
        if gradients:
            own, first = self.dtype.itemsize, self.blocks[0]
            recorded = 3 * d + attention + z + (d if first.attention_post else 0)
            shared = 2 * d if own == size else 0  # of what is recorded, autograd saves some as it is
            saved = 3 * width * own + 4 * (3 * d * len(first.norms) + 3 * attention) // 2
            path = 2 * (d + z) + 2 * (attention + d) + points * d if points else 0
            block = saved + (2 * recorded - shared) * own + path * 4
        return len(self.blocks) * block + sum(self._node_numbers(gradients)) * size

    def _node_numbers(self, gradients: bool) -> list[int]:
        """By block, numbers that a token takes for neuron and feature nodes: a vector each; some run the MLP alone."""
        graph, each = self.graph, self.d_model * (1 + gradients)
        counts = [len(graph.neurons_of(layer)) + len(graph.features_behind(layer)) for layer in range(graph.n_layers)]
        numbers = [each * count for count in counts]
        for (layer, _), described in self.described.items():
            numbers[layer] += 2 * self.mlp_width * len(described.which) * (described.site == "mlp")
        return numbers

    def least_bytes_per_token(self, *, gradients: bool) -> int:
        """About what one token of a prompt takes on the device at the least, where recorded activations are parked.

        That is what computing one block takes; under gradients with the points of an integrated path, of which one
        runs at a time. Where nothing is parked, or parked in the same memory, it is `bytes_per_token`. For Llamas of
        135M to 70B within a tenth of the tensors that are made (tests/engine/test_parked.py).
        """
        if self.activations_on == "device" or (self.activations_on == "cpu" and self.device.type == "cpu"):
            return self.bytes_per_token(gradients=gradients)
        inside = self.mlp_width * self.dtype.itemsize
        block = (13 if gradients else 9) * inside // 2 + 4 * self.d_model
        nodes = max(self._node_numbers(gradients)) * max(4, self.dtype.itemsize)
        return block + nodes + (PATH_POINTS + 2) * 4 * self.d_model * gradients

    @property
    def mlp_width(self) -> int:
        """Neurons of an MLP, as the configuration tells them: what plans of memory count with."""
        return getattr(self.hf.config, "intermediate_size", None) or 4 * self.d_model

    def logits(self, inputs: Inputs) -> Float[Tensor, "batch vocab"]:
        """Logits after the token at `inputs.read`, from the plain model."""
        with self._only_at(inputs.read):
            logits: Tensor = self._call(inputs).logits[:, 0]
        return logits

    def every_logits(self, inputs: Inputs) -> Float[Tensor, "batch pos vocab"]:
        """Logits after every token of `inputs`, from the plain model."""
        logits: Tensor = self._call(inputs).logits
        return logits

    def record(
        self, inputs: Inputs, *, logits: bool = True, start: int = 0, whole: bool = True, park: bool | None = None
    ) -> ActivationCache:
        """One forward pass and what it showed, from position `start` on.

        Without `logits` the pass ends before the final norm. Without `whole` the last MLP runs only at `inputs.read`,
        since no other position of it can reach the logits there; the cache has 0 at the others. What is recorded
        waits where `activations_on` says, under gradients only if `park` is set, since it is then out of their reach.
        """
        park = self.activations_on != "device" and (not torch.is_grad_enabled() if park is None else park)
        activations = ActivationCache.parked(self.activations_on, self.device) if park else ActivationCache()
        with self.reserved(), ExitStack() as stack:
            described = self.graph.described
            neurons = [() if layer in described else nodes for layer, nodes in enumerate(self.graph.neurons)]
            stack.enter_context(recording(self.blocks, self.final_norm.module, activations, start, neurons))
            stack.enter_context(self._only_at(inputs.read) if logits else self._ending_at_final_norm())
            if not whole:
                stack.enter_context(self._last_mlp_only_at(inputs))
            output = self._call(inputs)
            if output is not None:
                activations.logits = output.logits[:, 0]
        if neurons and not whole:
            rows, like = torch.arange(len(inputs.read), device=inputs.read.device), activations.mlp_out[-1]
            placed = activations.neurons[-1].new_zeros(*like.shape[:2], len(neurons[-1]))
            activations.neurons[-1] = placed.index_put((rows, inputs.read - start), activations.neurons[-1][:, 0])
        return activations

    def run_to(self, inputs: Inputs, layer: int) -> None:
        """A pass that ends in front of block `layer`, behind the last one in front of the final norm: for hooks."""
        end = self.blocks[layer].layer if layer < len(self.blocks) else self.final_norm.module
        with self._hooked(end.register_forward_pre_hook, _stop):
            self._call(inputs)

    def embeddings(self, inputs: Inputs) -> Float[Tensor, "batch pos d_model"]:
        """What the `embed` node writes: the residual in front of block 0."""
        seen: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(_hidden(args, kwargs))
            raise _Stop

        with self._hooked(self.blocks[0].layer.register_forward_pre_hook, stop, with_kwargs=True):
            self._call(inputs)
        return seen[0]

    def prefix_cache(self, inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [batch, kv head, pos, d_head] of every layer for the tokens of `inputs`."""
        cache = self.new_cache()
        # where the last block's output projection begins, the last keys are in the cache
        with self._hooked(self.blocks[-1].output.register_forward_pre_hook, _stop):
            self._call(replace(inputs, cache=cache))
        return [(layer.keys, layer.values) for layer in cache.layers]

    @staticmethod
    def new_cache() -> Any:
        """An empty cache that keeps all keys and values of one pass; sliding windows are the mask's business."""
        return Cache(layer_class_to_replicate=OnePassLayer)

    def attention_calls(self, inputs: Inputs) -> list[Call]:
        """How each block would call its attention on `inputs`, from a pass that runs no block's parts."""
        calls: list[Call] = []

        def note(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
            rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls.append((args[1:] if args else (), rest))
            return torch.zeros_like(_hidden(args, kwargs)), None

        with torch.no_grad(), self.reserved(), ExitStack() as stack:
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

        with self.eager_attention(), ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                stack.enter_context(hooked(block.attention.register_forward_hook, shown(layer)))
            yield

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Inside, the model computes its attention probabilities in the open. Entering walks over all modules."""
        with self.reserved(), ExitStack() as stack:
            before = self.hf.config._attn_implementation
            if isinstance(before, str) and before != "eager":
                self.hf.set_attn_implementation("eager")
                stack.callback(self.hf.set_attn_implementation, before)
            yield

    def starting_from(self, resid: Float[Tensor, "batch pos d_model"]) -> AbstractContextManager[None]:
        """Inside, every forward pass starts block 0 from `resid` in place of the embeddings."""

        def put(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return ((resid, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": resid})

        return self._hooked(self.blocks[0].layer.register_forward_pre_hook, put, with_kwargs=True)

    def writing_attention(self, layer: int, out: Float[Tensor, "batch pos d_model"]) -> AbstractContextManager[None]:
        """Inside, what the attention of a block adds to the stream is `out`."""
        return self._writing(self.blocks[layer].attention_end, out)

    def writing_mlp(self, layer: int, out: Float[Tensor, "batch pos d_model"]) -> AbstractContextManager[None]:
        """Inside, what the MLP of a block adds to the stream is `out`."""
        return self._writing(self.blocks[layer].mlp_ends[1], out)

    def _writing(self, module: nn.Module, out: Tensor) -> AbstractContextManager[None]:
        return self._hooked(module.register_forward_hook, lambda module, args, output: out.view_as(output))

    def parked_saves(self) -> AbstractContextManager[None]:
        """Inside, what autograd keeps for a backward pass waits where `activations_on` says, but for weights."""
        if self.activations_on == "device":
            return nullcontext()
        return saved_elsewhere(self.activations_on, self.hf.parameters())

    @contextmanager
    def frozen_parameters(self) -> Iterator[None]:
        """Inside, parameters take no gradients; afterwards each is as it was."""
        with self.reserved(), ExitStack() as stack:
            for parameter in [parameter for parameter in self.hf.parameters() if parameter.requires_grad]:
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
            yield

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
        seen: list[Tensor] = []

        def keep(z: Tensor) -> Tensor:
            seen.append(z)
            return z.new_zeros(*z.shape[:-1], self.d_model)

        args, kwargs = call
        hidden = values.new_empty(()).expand(*values.shape[:2], self.d_model)
        with self.reserved(), ExitStack() as stack:
            for module, part in zip(block.projections, block.merge(values), strict=True):
                stack.enter_context(replaced(module, lambda _, part=part: part))
            stack.enter_context(replaced(block.output, keep))
            output = block.attention(hidden, *args, **kwargs)
        return seen[0].unflatten(-1, (self.heads.q, self.heads.width)), output

    def _probabilities(self, layer: int, output: Any) -> Float[Tensor, "batch head query key"]:
        """The pattern in what an attention module gave."""
        pattern = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if pattern is None:
            raise UnsupportedModelError(
                f"{self.name} ({self.hf.config.model_type}) gives no attention probabilities at "
                f"{Node('attention', layer)}, even with eager attention. Methods that read attention patterns cannot "
                "be used on it."
            )
        return pattern

    def unembed(
        self, resid: Float[Tensor, "batch d_model"], tokens: Sequence[int] | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """Logits of a final residual, of all tokens or of some: final norm, unembedding, soft cap."""
        with self.reserved():
            normed, head = self.final_norm(resid), self.unembedding
            logits: Tensor
            if tokens is None:
                logits = head(normed)
            else:
                weight, bias = weight_of(head), parameter(head, "bias")
                logits = nn.functional.linear(normed, weight[tokens], None if bias is None else bias[tokens])
        cap = getattr(self.hf.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _call(self, inputs: Inputs) -> Any:
        """The model's own forward; None where a hook ended the pass early. Raises `InputError` for too long a text."""
        self._check_positions(inputs)
        with self.reserved(), self.running_rows(*(self.rows or ((), 0))):
            try:
                return self.hf(
                    input_ids=inputs.ids,
                    attention_mask=inputs.mask,
                    position_ids=inputs.positions + self.first_position,
                    past_key_values=inputs.cache,
                    use_cache=inputs.cache is not None,
                )
            except _Stop:
                return None

    def edited(self, edit: Edited) -> AbstractContextManager[None]:
        """Inside, every pass of `hf` has the changes of an edit (`cm.Edit`)."""
        return edit.applied(self)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, other threads that want the model wait; modules stay in training mode or not, as they are."""
        with self._use.lock:
            yield

    @contextmanager
    def running_rows(self, rows: Sequence[int], count: int) -> Iterator[None]:
        """Inside, a pass runs the prompts `rows` of `count`: what is in force for single prompts finds its own.

        A count of 0 says that it is not known which prompts they are.
        """
        with self._use.lock:
            before, self._use.rows = self._use.rows, (tuple(rows), count)
            try:
                yield
            finally:
                self._use.rows = before

    @property
    def rows(self) -> tuple[tuple[int, ...], int] | None:
        """In `running_rows`: which prompts a pass runs, and of how many; None where a pass runs all, in order."""
        return self._use.rows

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Inside, no other thread uses the model and no dropout is drawn; afterwards each module's mode is as it was.

        Another thread that wants the model waits here until this one is done.
        """
        with self._use.lock, ExitStack() as stack:
            if self._use.reservations == 0:
                self._prepare(stack)
            self._use.reservations += 1
            try:
                yield
            finally:
                self._use.reservations -= 1

    def _prepare(self, stack: ExitStack) -> None:
        """Evaluation mode, weights read at each use, and, in float64, masks that stay finite, until `stack` ends."""
        for module in [module for module in self.hf.modules() if module.training]:
            module.training = False
            stack.callback(setattr, module, "training", True)
        for module, forward in thin_forwards(self.hf):
            stack.enter_context(replaced(module, forward))
        if self.dtype == torch.float64:
            for block in self.blocks:
                hook = block.attention.register_forward_pre_hook(_with_finite_mask, with_kwargs=True)
                stack.callback(hook.remove)

    @contextmanager
    def _hooked(self, register: Callable[..., Any], hook: Callable[..., Any], **options: Any) -> Iterator[None]:
        """Inside, the model is reserved and a hook installed."""
        with self.reserved(), hooked(register, hook, **options):
            yield

    def _only_at(self, read: Int[Tensor, " batch"]) -> AbstractContextManager[None]:
        """Inside, the unembedding sees one position a prompt."""
        rows = torch.arange(len(read), device=read.device)

        def pick(module: nn.Module, args: tuple[Any, ...]) -> Any:
            return (args[0][rows, read][:, None], *args[1:])

        return self._hooked(self.hf.get_output_embeddings().register_forward_pre_hook, pick)  # type: ignore[union-attr]

    def _ending_at_final_norm(self) -> AbstractContextManager[None]:
        return self._hooked(self.final_norm.module.register_forward_pre_hook, _stop)

    @contextmanager
    def _last_mlp_only_at(self, inputs: Inputs) -> Iterator[None]:
        """Inside a reservation: the last block's MLP runs at `inputs.read` alone and gives 0 at all other positions.

        Its first module picks these positions, its last one puts what comes out back among zeros. Some models (OPT)
        have joined batch and position to one axis before.
        """
        first, last = self.blocks[-1].mlp_ends
        enter, leave = first.forward, last.forward
        batch, pos = inputs.ids.shape
        at_read = torch.arange(batch, device=inputs.read.device) * pos + inputs.read

        def pick(x: Tensor) -> Tensor:
            picked = x.flatten(0, -2)[at_read]
            return enter(picked if x.ndim == 2 else picked[:, None])

        def put(x: Tensor) -> Tensor:
            out = leave(x)
            whole = out.new_zeros(batch * pos, out.shape[-1]).index_copy(0, at_read, out.flatten(0, -2))
            return whole if out.ndim == 2 else whole.unflatten(0, (batch, pos))

        with replaced(first, pick), replaced(last, put):
            yield


def _with_finite_mask(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The lowest float64 is minus infinity in transformers' float32 softmax, so padding that sees nothing gets NaN."""
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.dtype == torch.float64:
        kwargs = {**kwargs, "attention_mask": mask.clamp(min=torch.finfo(torch.float32).min)}
    return args, kwargs


def _stop(*args: Any) -> None:
    raise _Stop


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden
