"""Rules for the backward pass: every value of a forward pass stays, some vector-Jacobian products are replaced.

With stop(.) for what passes no gradient, and g for the gradient that arrives, a rule makes autograd see

    norm         y = gain * centre(x) / stop(sigma(x)) + bias      of norms on the stream, on q, on k, on outputs
    gate         act(z) = z * stop(act(z) / z)                     act'(z) where |z| < 1e-6
    half         gradient of act(gate) * up times 1/2              where the MLP is gated
    pattern      z = stop(softmax(scores)) v                       queries and keys get no gradient
    temperature  gradient of softmax(x): s * (g - sum(g * s))      with s = softmax(x / T)
    qkv          gradients of q, k, v times three factors          behind rotations and norms of q and k

Gradients of products of functions of the input vanish where one factor is saturated or count a product once for each
factor; these rules repair that. Sources: Jafari et al. 2025, arXiv:2508.21258 (RelP: norm, gate, half; pattern as an
option); Edin et al. 2025, arXiv:2505.17630 (GIM: norm, half, temperature 2, qkv 1/4, 1/4, 1/2). Departure: the scale
of GIM's temperature gradient has no 1 / T, as in the published code.

Every rule counts where it acted. One that should act at a place of the model and did not is an error, since scores
would be those of another method without a word.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from typing_extensions import override

from circuitome.errors import AdapterError, InputError, unknown_name
from circuitome.graph.node import Node
from circuitome.models.attention import Attend, AttentionCall, attending, by_group, mix
from circuitome.models.hooks import replaced
from circuitome.models.model import Model
from circuitome.models.norms import Norm

SMALL = 1e-6
"""Below this size of its input an activation function's slope stands for its secant."""


@dataclass(frozen=True)
class Rules:
    """Which rules are in force; see the formulas of the module. Without any, gradients are autograd's.

    >>> str(cm.Rules(norm=True, pattern=True)), str(cm.Rules(norm=True, gate=True, half=True))
    ('norm, pattern', 'relp')

    Raises `InputError` for a temperature that is not positive, and for one of a pattern that passes no gradient.
    """

    norm: bool = False
    """Divisors of norms pass no gradient."""
    gate: bool = False
    """Activation functions are lines through the origin and their value."""
    half: bool = False
    """The two factors of a gated MLP share the gradient of their product."""
    pattern: bool = False
    """Attention patterns pass no gradient."""
    temperature: float = 1.0
    """T of the softmax whose gradient attention scores get."""
    qkv: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What the gradients of queries, keys and values are multiplied by."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise InputError(f"The temperature of a softmax must be positive, got {self.temperature:g}.")
        if self.pattern and self.temperature != 1:
            raise InputError("A pattern that passes no gradient has no temperature. Give one of the two.")

    @property
    def attention(self) -> bool:
        """Whether a rule changes gradients inside attention."""
        return self.pattern or self.temperature != 1 or self.qkv != (1, 1, 1)

    @override
    def __str__(self) -> str:
        named = next((name for name, rules in RULES.items() if rules == self), "")
        switches = [name for name in ("norm", "gate", "half", "pattern") if getattr(self, name)]
        switches += [f"temperature {self.temperature:g}"] * (self.temperature != 1)
        switches += ["qkv " + "/".join(f"{factor:g}" for factor in self.qkv)] * (self.qkv != (1, 1, 1))
        return named or ", ".join(switches)


RULES: dict[str, Rules] = {
    "plain": Rules(),
    "norm": Rules(norm=True),
    "relp": Rules(norm=True, gate=True, half=True),
    "gim": Rules(norm=True, half=True, temperature=2.0, qkv=(0.25, 0.25, 0.5)),
}
"""Rules by name."""


PLAIN = RULES["plain"]
"""No rule."""


def rules_of(name: str | Rules) -> Rules:
    """The rules called `name`; rules themselves stay. Raises `UnknownNameError`."""
    if isinstance(name, Rules):
        return name
    if name not in RULES:
        raise unknown_name("set of rules", name, RULES)
    return RULES[name]


def with_rules(method: str, rules: Rules) -> str:
    """The name of a method, with its rules where they are not plain."""
    return method if rules == PLAIN else f"{method}, rules {rules}"


@dataclass
class Fired:
    """How often each rule acted, and where it has to act."""

    n_layers: int
    """Number of blocks."""
    counts: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    """By rule, layer (the final norm's is the number of blocks) and place in the block."""
    expected: list[tuple[str, int, str]] = field(default_factory=list)
    """Where a rule has to act."""

    def expect(self, rule: str, layer: int, place: str) -> Callable[[], None]:
        """From now on the rule has to act there; what is given counts that it did."""
        key = (rule, layer, place)
        self.expected.append(key)

        def count() -> None:
            self.counts[key] += 1

        return count

    def by_layer(self, rule: str) -> list[int]:
        """How often a rule acted in each block."""
        found = [0] * self.n_layers
        for (name, layer, _), count in self.counts.items():
            if name == rule and layer < self.n_layers:
                found[layer] += count
        return found

    def check(self, model: Model) -> None:
        """Raises `AdapterError`, which names the places, where a rule that has to act never did."""
        silent = [f"{rule} at {place}" for rule, layer, place in self.expected if not self.counts[rule, layer, place]]
        if silent:
            more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
            raise AdapterError(
                f"Rules of the backward pass never acted on {model.name} ({model.hf.config.model_type}): "
                f"{', '.join(silent[:4])}{more}. Its gradients would be ordinary ones there. Either no forward pass "
                "ran, or its code does not call these modules; the row is in circuitome/models/families.py."
            )


@contextmanager
def backward_rules(model: Model, rules: str | Rules, *, whole: bool = True) -> Iterator[Fired]:
    """Inside, gradients of forward passes of `model` follow `rules`; the passes' values do not change.

    `rules` is a name in `RULES` or rules of one's own; see the formulas of the module for what each does. Values are
    bit-equal, but for rules inside attention, which have it computed in the open: equal up to rounding. Gradients may
    be taken after the end. Gives the counts of how often each rule acted. Unless `whole`, parts of the model may run
    alone, so that it is not checked that every rule acts.

    Raises `AdapterError` at the end of the block where a rule never acted at a place where it should, and at the
    beginning for a model with a norm that circuitome's description lacks; `UnsupportedModelError` for rules inside
    attention of a model whose attention does not go through transformers' attention interface; `UnknownNameError`.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 2)
    >>> with cm.backward_rules(model, "relp") as fired:
    ...     _ = model.hf(torch.tensor([task.pairs[0].clean]))
    >>> fired.by_layer("gate")
    [1, 1, 1]
    """
    rules, fired = rules_of(rules), Fired(len(model.blocks))
    with model.reserved(), ExitStack() as stack:
        for module, forward in _replacements(model, rules, fired):
            stack.enter_context(replaced(module, forward))
        if rules.attention:
            stack.enter_context(attending(model, _attend(model, rules, fired)))
        yield fired
        if whole:
            fired.check(model)


def _replacements(model: Model, rules: Rules, fired: Fired) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
    """Every module whose gradient changes, and what it then calls."""
    if rules.norm:
        _check_norms(model)
        yield from _norms(model, fired)
    for layer, block in enumerate(model.blocks):
        mlp = str(Node.mlp(layer))
        if rules.gate:
            yield block.activation, _secant(block.activation.forward, fired.expect("gate", layer, mlp))
        if rules.half and block.gated:
            writer = block.mlp_writer
            yield writer, _halved(writer.forward, fired.expect("half", layer, mlp))


def _norms(model: Model, fired: Fired) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
    """Every norm and its frozen form. An identity in a norm's place has no divisor and no rule."""
    for layer, place, norm in described_norms(model):
        if not isinstance(norm.module, nn.Identity):
            yield norm.module, _frozen(norm, norm.module.forward, fired.expect("norm", layer, place))


def described_norms(model: Model) -> Iterator[tuple[int, str, Norm]]:
    """Layer, place and norm of all norms that the package knows in a model, the final one last."""
    for layer, block in enumerate(model.blocks):
        places = {
            f"the norm before {Node('attention', layer)}": block.attention_norm,
            f"the norm before {Node.mlp(layer)}": block.mlp_norm,
            f"the norm behind {Node('attention', layer)}": block.attention_post,
            f"the norm behind {Node.mlp(layer)}": block.mlp_post,
        }
        found = [(place, norm) for place, norm in places.items() if norm is not None]
        found += [(f"norm {i} on q and k of {Node('attention', layer)}", n) for i, n in enumerate(block.qk_norms)]
        yield from ((layer, place, norm) for place, norm in found)
    yield len(model.blocks), "the final norm", model.final_norm


def _check_norms(model: Model) -> None:
    """Raises `AdapterError` for what looks like a norm and is in no description: its gradient would stay ordinary."""
    known = {id(norm.module) for _, _, norm in described_norms(model)}
    for block in model.blocks:
        for name, module in block.layer.named_modules():
            if (hasattr(module, "eps") or hasattr(module, "variance_epsilon")) and id(module) not in known:
                raise AdapterError(
                    f"{model.name} ({model.hf.config.model_type}) has a norm {name} that circuitome's description "
                    "of its architecture lacks, so no rule can act there. The row is in circuitome/models/families.py."
                )


class _WithGradient(torch.autograd.Function):
    """A value whose gradient a function of ours computes."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor, value: Tensor, pull_back: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.pull_back = pull_back
        return value.view_as(value)

    @staticmethod
    @override
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.pull_back(gradients[0]), None, None


def with_gradient(x: Tensor, value: Tensor, pull_back: Callable[[Tensor], Tensor]) -> Tensor:
    """`value`, seen by autograd as a function of `x` alone that takes a gradient back by `pull_back`."""
    result: Tensor = _WithGradient.apply(x, value.detach(), pull_back)  # type: ignore[no-untyped-call]  # torch's own
    return result


def scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """`x`, whose gradient is multiplied by `factor`."""
    return with_gradient(x, x, lambda g: g * factor)


def _frozen(norm: Norm, forward: Callable[[Tensor], Tensor], count: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """A norm whose divisor passes no gradient: g becomes centre(g * gain) / sigma."""

    def run(x: Tensor) -> Tensor:
        count()
        with torch.no_grad():
            value, slope = forward(x), norm.gain / norm.sigma(x)
        return with_gradient(x, value, lambda g: norm.centre(g.float() * slope).to(x.dtype))

    return run


def _secant(forward: Callable[[Tensor], Tensor], count: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """An activation function whose slope is act(z) / z."""

    def run(z: Tensor) -> Tensor:
        count()
        with torch.no_grad():
            value = forward(z)
        slope = value / z
        if bool((small := z.detach().abs() < SMALL).any()):
            slope = slope.detach().masked_scatter(small, _slope(forward, z.detach()[small]))
        slope = slope.detach()
        return with_gradient(z, value, lambda g: g * slope)

    return run


def _slope(forward: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """act'(z) of some numbers."""
    with torch.enable_grad():
        leaf = z.clone().requires_grad_(True)
        return torch.autograd.grad(forward(leaf).sum(), leaf)[0]


def _halved(forward: Callable[[Tensor], Tensor], count: Callable[[], None]) -> Callable[[Tensor], Tensor]:
    """A projection of the neurons that gives them half of its gradient."""

    def run(neurons: Tensor) -> Tensor:
        count()
        return forward(scaled_gradient(neurons, 0.5))

    return run


def _attend(model: Model, rules: Rules, fired: Fired) -> Attend:
    """Attention in the open under the rules; see the formulas of the module."""
    named = {"pattern": rules.pattern, "temperature": rules.temperature != 1, "qkv": rules.qkv != (1, 1, 1)}
    counts = {
        layer: [fired.expect(name, layer, str(Node("attention", layer))) for name, on in named.items() if on]
        for layer in range(len(model.blocks))
    }

    def attend(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        for count in counts[call.layer]:
            count()
        query, key, value = (scaled_gradient(x, f) for x, f in zip((query, key, value), rules.qkv, strict=True))
        scores = call.capped(by_group(query, key.shape[1], key.transpose(-1, -2)))
        if call.mask is not None:
            scores = scores + call.mask
        return mix(_pattern(scores, rules).to(value.dtype), value)

    return attend


def _pattern(scores: Float[Tensor, "batch head query key"], rules: Rules) -> Float[Tensor, "batch head query key"]:
    """The softmax of attention scores in float32, with the gradient that the rules give it."""
    pattern = scores.softmax(-1, dtype=torch.float32)
    if rules.pattern:
        return pattern.detach()
    if rules.temperature == 1:
        return pattern
    warm = (scores.detach() / rules.temperature).softmax(-1, dtype=torch.float32)

    def pull_back(g: Tensor) -> Tensor:
        return (warm * (g - (g * warm).sum(-1, keepdim=True))).to(scores.dtype)

    return with_gradient(scores, pattern, pull_back)
