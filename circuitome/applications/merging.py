"""Merging: the changes that fine-tunings made to one base model, added up in one checkpoint.

With base weights t0 and changes d_i = t_i - t0 of the fine-tuned models:

    task-arithmetic   t0 + weight * sum d_i                                  Ilharco et al. 2023, arXiv:2212.04089
    ties              t0 + weight * disjoint mean of the trimmed d_i         Yadav et al. 2023, arXiv:2306.01708
    dare              t0 + weight * sum of the dropped d_i / (1 - drop)      Yu et al. 2024, arXiv:2311.03099
    slerp             sin((1-t) W) / sin W * t_1 + sin(t W) / sin W * t_2    Shoemake 1985; W the angle of the tensors

TIES keeps of each change the share `density` of largest size over all tensors together, elects by entry the sign of
the sum (the sign of most entries where the sum is 0), and takes the mean of the kept entries that have it. SLERP is
linear where the tensors are nearly parallel. Changes are weighted by parts before all of that, so that only those of
a circuit's parts count. Tensors are read one by one.
"""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuitome.applications.component_masks import ComponentMasks, component_masks, shape_of
from circuitome.applications.merge_formulas import Largest, added, disjoint_mean, dropped, slerp
from circuitome.errors import InputError, unknown_name
from circuitome.models.loading import checkpoint_folder
from circuitome.models.saving import check_empty
from circuitome.progress import Progress, silent

WEIGHTS = {"task-arithmetic": 0.4, "ties": 1.0, "dare": 0.4, "slerp": 0.5}
"""Methods, and what changes are multiplied with where nobody says; of slerp, the place between the two models."""
DENSITY, DROP = 0.2, 0.9
"""Share that TIES keeps, and share that DARE drops, where nobody says."""
SHARD = 2_000_000_000
"""Bytes of one file of the merged checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How models are merged.

    >>> cm.applications.Recipe(method="ties", density=0.5).factor
    1.0

    Raises `UnknownNameError` for another method, `InputError` for numbers that cannot be.
    """

    method: str = "task-arithmetic"
    """task-arithmetic, ties, dare or slerp."""
    weight: float | None = None
    """What the changes are multiplied with; of slerp, the place between the first model, 0, and the second, 1."""
    density: float = DENSITY
    """Of ties: the share of entries that is kept."""
    drop: float = DROP
    """Of dare: the share of entries that is dropped, at random."""
    outside: float = 0.0
    """What changes outside of the chosen parts are multiplied with, where parts are chosen."""
    seed: int = 0
    """Seed of what dare drops."""

    def __post_init__(self) -> None:
        if self.method not in WEIGHTS:
            raise unknown_name("method of merging", self.method, WEIGHTS)
        if not 0 < self.density <= 1 or not 0 <= self.drop < 1:
            raise InputError(
                f"density is above 0 and at most 1, drop at least 0 and below 1, got {self.density:g}, {self.drop:g}."
            )
        if not math.isfinite(self.factor) or not math.isfinite(self.outside):
            raise InputError(f"weight and outside must be finite, got {self.weight} and {self.outside}.")

    @property
    def factor(self) -> float:
        """The weight, or that of the method."""
        return WEIGHTS[self.method] if self.weight is None else self.weight


@dataclass(frozen=True)
class Weights:
    """The tensors of a checkpoint, each read when it is asked for."""

    folder: Path
    """Where it lies."""
    files: Mapping[str, Path]
    """By tensor, the file that holds it."""

    @classmethod
    def of(cls, folder: Path) -> "Weights":
        """Raises `InputError` for a folder without safetensors."""
        files = dict[str, Path]()
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as opened:
                files |= dict.fromkeys(opened.keys(), path)
        if not files:
            raise InputError(f"{folder} holds no .safetensors file, so there is nothing to merge.")
        return cls(folder, files)

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.files[name], "pt") as opened:
            return opened.get_tensor(name)

    def shape(self, name: str) -> list[int]:
        """Of a tensor, which is not read."""
        with safe_open(self.files[name], "pt") as opened:
            return list(opened.get_slice(name).get_shape())

    @cached_property
    def vocabulary(self) -> dict[str, int] | None:
        """Tokens with their ids; None without a tokenizer.json."""
        path = self.folder / "tokenizer.json"
        if not path.is_file():
            return None
        found: Any = json.loads(path.read_text("utf-8"))["model"].get("vocab", {})
        return dict(found) if isinstance(found, dict) else {token: i for i, (token, _) in enumerate(found)}


def merge(
    base: str | Path,
    models: Sequence[str | Path],
    folder: str | Path,
    recipe: Recipe | str = "task-arithmetic",
    *,
    only: Sequence[Sequence[str]] | None = None,
    progress: Progress = silent,
) -> Path:
    """The checkpoint of `base` with the changes that fine-tuning made in each of `models`, merged by a recipe.

    All are names or folders of checkpoints of one shape with one tokenizer; configuration and tokenizer of `base` are
    taken. `only` gives for each model the parts whose changes count, heads, neurons and MLPs by name; changes of other
    parts, of norms and of embeddings are multiplied with `recipe.outside`. Formulas and sources stand in the module.
    Tensors are read, merged and written one after another; ties reads all twice more for its thresholds.

    >>> from pathlib import Path
    >>> from tempfile import mkdtemp
    >>> folder = Path(mkdtemp())
    >>> model = cm.training.untrained(cm.load("known-ioi"))
    >>> base = model.hf.save_pretrained(folder / "base")
    >>> cm.merge(folder / "base", [folder / "base"], folder / "merged").name
    'merged'

    Raises `InputError` for other shapes or tokenizers, which are shown, and for slerp of any number of models but two;
    `RunError` for a folder that is not empty.
    """
    made, out = Recipe(method=recipe) if isinstance(recipe, str) else recipe, Path(folder)
    if not models or (made.method == "slerp" and len(models) != 2):
        wanted = "two models" if made.method == "slerp" else "at least one model"
        raise InputError(f"{made.method} merges {wanted}, got {len(models)}.")
    if only is not None and len(only) != len(models):
        raise InputError(f"Parts are given for {len(only)} models, and there are {len(models)}.")
    check_empty(out)
    first, *others = (Weights.of(checkpoint_folder(name)) for name in (base, *models))
    for name, other in zip(models, others, strict=True):
        check_same(str(base), first, str(name), other)
    shape = None if only is None else shape_of(first.folder)
    masks = [component_masks(shape, parts) for parts in only] if only and shape else [None] * len(others)
    return _write(_Changes(first, others, masks, made, progress), out)


def check_same(base: str, first: Weights, name: str, other: Weights) -> None:
    """Raises `InputError` unless both have tensors of one shape, and one tokenizer; shows what differs."""
    start = f"{base} and {name} cannot be merged:"
    if odd := sorted(first.files.keys() ^ other.files.keys()):
        holder = base if odd[0] in first.files else name
        raise InputError(
            f"{start} they hold {len(first.files)} and {len(other.files)} tensors; {odd[0]} is in {holder} alone."
        )
    for tensor in first.files:
        if (a := first.shape(tensor)) != (b := other.shape(tensor)):
            raise InputError(f"{start} {tensor} has shape {a} in one and {b} in the other.")
    one, two = first.vocabulary, other.vocabulary
    if one is not None and two is not None and one != two:
        odd = sorted({token for token, _ in one.items() ^ two.items()})
        raise InputError(
            f"{start} their tokenizers differ, {len(one)} and {len(two)} tokens; {odd[0]!r} is number "
            f"{one.get(odd[0], 'none')} in one and {two.get(odd[0], 'none')} in the other."
        )


@dataclass
class _Changes:
    """Changes of all models, tensor by tensor."""

    base: Weights
    models: Sequence[Weights]
    masks: Sequence[ComponentMasks | None]
    recipe: Recipe
    progress: Progress

    def of(self, name: str, base: Tensor) -> Float[Tensor, "model ..."]:
        """Float32, weighted by parts."""
        found = []
        for weights, masks in zip(self.models, self.masks, strict=True):
            change = weights[name].float() - base.float()
            found.append(change if masks is None else masks.weighted(name, change, self.recipe.outside))
        return torch.stack(found)

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the merged model, one by one."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        thresholds, majority = self._ties() if self.recipe.method == "ties" else (None, 0.0)
        for done, name in enumerate(self.base.files, 1):
            base = self.base[name]
            if base.is_floating_point():
                yield name, self._one(base, self.of(name, base), generator, thresholds, majority).to(base.dtype)
            else:
                yield name, base
            self.progress("merging", done, len(self.base.files))

    def _one(
        self, base: Tensor, changes: Tensor, generator: torch.Generator, thresholds: Tensor | None, majority: float
    ) -> Tensor:
        recipe, start = self.recipe, base.float()
        if recipe.method == "slerp":
            return slerp(start + changes[0], start + changes[1], recipe.factor)
        if thresholds is not None:
            return start + recipe.factor * disjoint_mean(changes, thresholds, majority)
        kept = dropped(changes, recipe.drop, generator) if recipe.method == "dare" else changes
        return start + recipe.factor * added(kept)

    def _ties(self) -> tuple[Float[Tensor, " model"], float]:
        """By model, the size from which its changes are kept, and the sign of most sums of kept changes."""
        names = [name for name in self.base.files if self.base[name].is_floating_point()]
        counts, largest, total = [], [Largest() for _ in self.models], 0
        for round_ in range(2):
            for done, name in enumerate(names, 1):
                for one, change in zip(largest, self.of(name, self.base[name]), strict=True):
                    one.see(change)
                    total += change.numel() * (round_ == 0)
                self.progress("sizes of the changes", round_ * len(names) + done, 2 * len(names))
            counts = [max(1, round(self.recipe.density * total / len(self.models)))] * len(self.models)
            if round_ == 0:
                for one, k in zip(largest, counts, strict=True):
                    one.narrow(k)
        thresholds = torch.tensor([one.size(k) for one, k in zip(largest, counts, strict=True)])
        return thresholds, self._majority(names, thresholds)

    def _majority(self, names: Sequence[str], thresholds: Tensor) -> float:
        balance = 0.0
        for name in names:
            changes = self.of(name, self.base[name])
            trimmed = changes * (changes.abs() >= thresholds.view(-1, *[1] * (changes.ndim - 1)))
            balance += float(trimmed.sum(0).sign().sum())
        return 1.0 if balance >= 0 else -1.0


def _write(changes: _Changes, out: Path) -> Path:
    """Write the tensors in files of limited size, beside and renamed, with all else that the base's folder holds."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for file in changes.base.folder.iterdir():
            if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja") and ".index." not in file.name:
                shutil.copy(file, partial)
        _shards(changes.merged(), partial)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _shards(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> None:
    """Files of tensors, and the index of them where there are several."""
    shards, waiting, size, total = list[list[str]](), dict[str, Tensor](), 0, 0

    def flush() -> None:
        save_file(waiting, folder / f"part-{len(shards)}", {"format": "pt"})
        shards.append(list(waiting))
        waiting.clear()

    for name, tensor in tensors:
        if waiting and size + tensor.nbytes > SHARD:
            flush()
            size = 0
        waiting[name] = tensor.contiguous()
        size, total = size + tensor.nbytes, total + tensor.nbytes
    flush()
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
        where = {tensor: file for file, held in zip(names, shards, strict=True) for tensor in held}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    for i, name in enumerate(names):
        (folder / f"part-{i}").rename(folder / name)
