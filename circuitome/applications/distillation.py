"""Distillation: a student learns a teacher's predictions, and, with alignment, what the heads of its circuit write.

    loss = T^2 KL( softmax(teacher / T) || softmax(student / T) ) + weight * mean over pairs of (1 - CKA(r_t, r_s))

both means over tokens of the batch. Pairs are heads of the teacher's circuit and the student's heads whose effects on
the task are most alike, prompt by prompt; r is what a head writes. After Hinton et al. 2015 (arXiv:1503.02531),
Kornblith et al. 2019 (arXiv:1905.00414) for linear CKA, and Wadhwa et al. 2025 for the pairs and the sum.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from circuitome.applications.gates import task_gates
from circuitome.engine.setting import Setting
from circuitome.errors import InputError
from circuitome.graph.node import Node
from circuitome.models.hooks import hooked
from circuitome.models.model import Model
from circuitome.tasks.task import Task
from circuitome.training.loop import Training, train
from circuitome.training.objectives import logits_of, mean_cross_entropy
from circuitome.training.schedule import Schedule
from circuitome.training.streams import Rows, Stream

PAIRS, TEMPERATURE = 8, 2.0


@dataclass(frozen=True)
class HeadPair:
    """A head of the teacher, and the student's head that is matched with it."""

    teacher: str
    """The teacher's head, a9.h6."""
    student: str
    """The student's head."""
    similarity: float
    """Cosine of the two heads' effects over prompts."""


def matched_heads(teacher: Model, student: Model, task: Task, *, pairs: int = PAIRS) -> tuple[HeadPair, ...]:
    """The teacher's `pairs` heads with the largest mean effect on the task, each with a student's head of its own.

    Effects are those of holding a head at zero, to first order, on each prompt's clean metric minus its corrupted one
    (`circuitome.applications.gates`). The sum of the cosines is as large as any one-to-one matching makes it.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> [(pair.teacher, pair.student) for pair in cm.applications.matched_heads(model, model, task, pairs=1)]
    [('a2.h0', 'a2.h0')]

    Raises `InputError` where the two have different vocabularies.
    """
    check_pair(teacher, student)
    effects = [_effects(model, task) for model in (teacher, student)]
    strongest = effects[0].mean(0).abs().sort(descending=True, stable=True).indices[:pairs]
    likeness = _cosines(effects[0][:, strongest], effects[1])
    rows, columns = linear_sum_assignment(likeness.numpy(), maximize=True)
    return tuple(
        HeadPair(_name(teacher, int(strongest[i])), _name(student, j), float(likeness[i, j]))
        for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
    )


def resemblance(teacher: Model, student: Model, task: Task, *, pairs: int = PAIRS) -> float:
    """How much the student's circuit is like the teacher's: the mean cosine of the effects of matched heads.

    1 for a copy. A student of random heads has more than 0, since the best of its heads is taken for each of the
    teacher's: compare with one.

    >>> model, task = cm.load("known-ioi"), cm.ground_truth.task("known-ioi", 16)
    >>> round(cm.applications.resemblance(model, model, task, pairs=2), 3)
    1.0
    """
    matched = matched_heads(teacher, student, task, pairs=pairs)
    return sum(pair.similarity for pair in matched) / len(matched)


def _effects(model: Model, task: Task) -> Float[Tensor, "prompt head"]:
    return task_gates(Setting(model, task)).changes().heads.flatten(1)


def _cosines(a: Float[Tensor, "prompt m"], b: Float[Tensor, "prompt n"]) -> Float[Tensor, "m n"]:
    """Cosines of columns; 0 of a head that does nothing."""
    a, b = (x / x.norm(dim=0).clamp(min=torch.finfo(x.dtype).tiny) for x in (a, b))
    return a.T @ b


def _name(model: Model, head: int) -> str:
    return str(Node.head(*divmod(head, model.heads.q)))


def linear_cka(x: Float[Tensor, "token m"], y: Float[Tensor, "token n"]) -> Float[Tensor, ""]:
    """Linear centred kernel alignment of two sets of vectors: |X' Y|^2 / (|X' X| |Y' Y|), columns centred.

    From 0 to 1; the same for rotated and scaled vectors.

    >>> x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    >>> round(float(cm.applications.linear_cka(x, 3 * x.flip(1))), 4)
    1.0
    """
    x, y = x - x.mean(0), y - y.mean(0)
    tiny = torch.finfo(x.dtype).tiny
    return (x.T @ y).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()).clamp(min=tiny)


@dataclass(frozen=True, eq=False)
class Distillation:
    """The loss of the module, as an objective of `cm.training.train`; its parts are `kl`, `text` and `alignment`."""

    teacher: Model
    """Never changed."""
    temperature: float = TEMPERATURE
    """Divides both models' logits."""
    text: float = 0.0
    """Weight of the ordinary next-token loss."""
    pairs: tuple[HeadPair, ...] = ()
    """Matched heads; none: no alignment."""
    weight: float = 1.0
    """Weight of the alignment."""

    def __call__(self, student: Model, tokens: Rows) -> Mapping[str, Tensor]:
        """The parts of the loss."""
        with torch.no_grad(), self.teacher.reserved(), _writing(self.teacher, self._heads("teacher")) as wanted:
            goal = logits_of(self.teacher, tokens)
        with _writing(student, self._heads("student")) as written:
            logits = logits_of(student, tokens)
        counted = tokens.counted[:, 1:]
        goal, given = (((x[:, :-1][counted]) / self.temperature).log_softmax(-1) for x in (goal, logits))
        divergence = torch.nn.functional.kl_div(given, goal, reduction="batchmean", log_target=True)
        parts = {"kl": self.temperature**2 * divergence}
        if self.text:
            parts["text"] = self.text * mean_cross_entropy(logits[:, :-1], tokens.targets[:, 1:])
        if self.pairs:
            apart = [
                1 - linear_cka(wanted[pair.teacher][tokens.counted], written[pair.student][tokens.counted])
                for pair in self.pairs
            ]
            parts["alignment"] = self.weight * torch.stack(apart).mean()
        return parts

    def _heads(self, side: str) -> list[str]:
        return [getattr(pair, side) for pair in self.pairs]


@contextmanager
def _writing(model: Model, heads: Sequence[str]) -> Iterator[dict[str, Float[Tensor, "row pos d_model"]]]:
    """Inside, a pass notes what some heads write: z times their output weights, with gradients, float32."""
    written: dict[str, Tensor] = {}
    by_layer: dict[int, list[Node]] = {}
    for name in heads:
        node = Node.parse(name)
        by_layer.setdefault(node.layer, []).append(node)

    def look(layer: int, args: tuple[Any, ...]) -> None:
        block = model.blocks[layer]
        z = args[0].float().unflatten(-1, (model.heads.q, model.heads.width))
        weights = block.head_weights([node.index for node in by_layer[layer]])
        for node, weight in zip(by_layer[layer], weights, strict=True):
            written[str(node)] = z[..., node.index, :] @ weight.to(z.device)

    with ExitStack() as stack:
        for layer in by_layer:
            hook = model.blocks[layer].output.register_forward_pre_hook
            stack.enter_context(hooked(hook, lambda module, args, layer=layer: look(layer, args)))
        yield written


def distil(
    teacher: Model,
    student: Model,
    data: Stream,
    schedule: Schedule,
    *,
    temperature: float = TEMPERATURE,
    text: float = 0.0,
    align: Task | Sequence[HeadPair] | None = None,
    weight: float = 1.0,
    **training: Any,
) -> Training:
    """Train the student, in place, to predict as the teacher does; `align` also matches the heads of a task's circuit.

    `align` is the task (then heads are matched before the training) or pairs of heads. CKA is taken over the rows that
    run at once. Further options are those of `cm.training.train`, which says how it resumes.

    >>> model = cm.load("known-ioi")
    >>> stream = cm.training.text_stream(model, "Ann and Bob met then Bob gave to")
    >>> copy = cm.load("known-ioi")
    >>> training = cm.applications.distil(model, copy, stream, cm.training.Schedule(steps=1, batch=2, length=8))
    >>> abs(training.history[-1]["kl"]) < 1e-6
    True

    Raises `InputError` for a student that is wider than the teacher, and for models of different vocabularies.
    """
    check_pair(teacher, student)
    if student.d_model > teacher.d_model:
        raise InputError(
            f"The student's stream has {student.d_model} coordinates and the teacher's {teacher.d_model}. A student is "
            "at most as wide as its teacher: exchange the two, or take a smaller student."
        )
    if not temperature > 0:
        raise InputError(f"The temperature must be above 0, got {temperature}.")
    pairs = matched_heads(teacher, student, align) if isinstance(align, Task) else tuple(align or ())
    objective = Distillation(teacher, temperature, text, pairs, weight)
    return train(student, data, schedule, objective=objective, **training)


def check_pair(teacher: Model, student: Model) -> None:
    """Raises `InputError` unless the two have one vocabulary."""
    sizes = [int(model.hf.config.vocab_size) for model in (teacher, student)]
    words = [None if model.tokenizer is None else model.tokenizer.get_vocab() for model in (teacher, student)]
    if sizes[0] != sizes[1] or (words[0] is not None and words[1] is not None and words[0] != words[1]):
        raise InputError(
            f"{teacher.name} has {sizes[0]:,} tokens and {student.name} {sizes[1]:,}, and they are not the same. "
            "Logits and prompts can only be compared where both models have one tokenizer."
        )
