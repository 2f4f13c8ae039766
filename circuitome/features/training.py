"""Training of a dictionary on a model's own activations, which are made as they are needed and never stored.

Windows of texts, in random order, are read a stretch of `STRETCH` tokens at a time; the tokens of a stretch are
shuffled and trained on once, in batches. What is kept for going on is written between stretches, and all that is drawn
is drawn from the seed and the stretch's number: a run that was killed goes on to the same bytes.

Inputs are centred on their geometric median and scaled to a mean norm of sqrt(d), outputs likewise; both are folded
into the weights at the end. Losses are squared errors over the variance. Features that have not fired for a while are
revived: the d / 2 largest of them learn to describe the error (AuxK, Gao et al. 2024, arXiv:2406.04093, section 2.4);
with an L1 penalty they are set to inputs that are described badly, drawn by their squared loss (Bricken et al. 2023).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError, NumericsError, unknown_name
from circuitome.features.activations import Activations, at_once, gathered
from circuitome.features.dictionary import Dictionary
from circuitome.features.harvest import harvested
from circuitome.features.kinds import BANDWIDTH, KINDS, Sparsity
from circuitome.features.places import Place
from circuitome.neurons.text_windows import Windows, windows
from circuitome.progress import BESIDE
from circuitome.results import Shown

STRETCH = 32_768
"""Tokens that are shuffled together."""
LENGTH, WIDTH, K, L1, BATCH = 256, 8, 32, 5.0, 512
"""Tokens of a window, features for each dimension, active features, L1 penalty, and tokens of a batch."""
LEARNING_RATE = 1.6e-3
"""Of Adam, for 16,384 features; it rises as the square root of their number falls. On 200,000 tokens of SmolLM2 a
quarter of it left 30 % more variance unexplained; published runs, a thousand times as long, take less."""
WARM_UP, DECAY = 0.02, 0.8
"""Shares of the training after which the learning rate is full, and from which it falls to 0."""
AUX = 1 / 32
"""Weight of the error that dead features learn to describe."""
DEAD_AFTER = 0.05
"""Share of the training's tokens without firing after which a feature counts as dead; at most 10 million tokens."""
RESAMPLED = (0.25, 0.5, 0.75)
"""Shares of the training after which dead features of an L1 dictionary are set anew."""
SAMPLE = 4096
"""Tokens from which medians, norms and thresholds are taken."""
SECONDS = 30.0
"""How long work may go on before what is learned so far is written down."""


@dataclass(frozen=True, eq=False)
class Trained(Shown):
    """A dictionary that was trained, and how the training went."""

    dictionary: Dictionary
    """The dictionary."""
    history: Float[Tensor, "stretch 4"]
    """After each stretch: tokens read, FVU on the stretch, active features a token, share of dead features."""
    speed: Mapping[str, float] = field(default_factory=dict)
    """Tokens a second by the clock: of bare passes of the same windows, of gathering activations (harvest), and of
    gathering and learning together (train); empty where an earlier run had read all texts."""

    def __repr__(self) -> str:
        tokens, fvu, active, dead = self.history[-1].tolist()
        return f"Trained({self.dictionary}, {tokens:,.0f} tokens, FVU {fvu:.3f}, {active:.1f} active, {dead:.1%} dead)"


@method
def train(
    setting: Setting,
    texts: str | Sequence[str] | Windows,
    *,
    site: str = "resid",
    layer: int,
    kind: str = "topk",
    width: int | None = None,
    k: int = K,
    l1: float = L1,
    skip: bool = False,
    tokens: int | None = None,
    length: int = LENGTH,
    batch: int = BATCH,
    learning_rate: float | None = None,
    ahead: Path | None = None,
) -> Trained:
    """A dictionary of `width` features (None: 8 for each dimension) for the values of one site, trained on `texts`.

    `site` is resid, mlp, attn, z or transcoder (see `places`), `kind` topk, batchtopk, jumprelu or l1 (see `kinds`).
    `k` is how many features are active on a token: exactly (topk), on average (batchtopk), or as the penalty's target
    (jumprelu); with `l1` that penalty decides. `skip` gives a transcoder a linear part of its own (Paulo et al. 2025,
    arXiv:2501.18823). Texts are cut into windows of `length` tokens in random order, until there are `tokens`.
    `ahead` is a folder of activations that `harvest` has made; what is not there is made as it is needed.
    With a checkpoint, what is learned is written between stretches, and a later call goes on to the same bytes.

    >>> model = cm.load("known-ioi")
    >>> trained = cm.features.train(model, "Ann and Bob met then Bob gave to", layer=0, width=16, k=2, length=5)
    >>> len(trained.dictionary), trained.dictionary.kind
    (16, 'topk')

    Raises `InputError` for what cannot be, `MemoryBudgetError` where not even one window fits, `NumericsError` where
    the training diverges.
    """
    place = Place(site, layer)
    place.check(setting.model)
    width = WIDTH * place.widths(setting.model)[1] if width is None else width
    _check(kind, width, k, batch, skip, site)
    cut = (
        texts
        if isinstance(texts, Windows)
        else windows(setting.model, texts, length=length, tokens=tokens, seed=setting.seed)
    )
    training = Training(setting, place, cut, kind, width, Sparsity(k, l1), skip, batch, learning_rate, ahead)
    return training.run()


def _check(kind: str, width: int, k: int, batch: int, skip: bool, site: str) -> None:
    """Raises `InputError` for sizes and names that cannot be."""
    if kind not in KINDS:
        raise unknown_name("kind of dictionary", kind, KINDS)
    if not 1 <= k <= width:
        raise InputError(f"k={k} of {width} features cannot be active; k is at least 1 and at most the width.")
    if batch < 1:
        raise InputError(f"A batch has at least one token, got {batch}.")
    if skip and site != "transcoder":
        raise InputError(f"skip is a transcoder's linear part; at {site} it would copy the values themselves.")


class Training:
    """A dictionary while it learns."""

    def __init__(
        self,
        setting: Setting,
        place: Place,
        cut: Windows,
        kind: str,
        width: int,
        sparsity: Sparsity,
        skip: bool,
        batch: int,
        learning_rate: float | None,
        ahead: Path | None,
    ) -> None:
        self.setting, self.place, self.cut, self.kind = setting, place, cut, kind
        self.width, self.sparsity, self.skip, self.batch, self.ahead = width, sparsity, skip, batch, ahead
        self.rate = LEARNING_RATE * (16384 / width) ** 0.5 if learning_rate is None else learning_rate
        self.stretches = stretches(cut)
        self.dead_after = min(10_000_000, max(batch, int(DEAD_AFTER * cut.tokens)))
        self.parameters: dict[str, Tensor] = {}
        self.scale: dict[str, Tensor] = {}
        self.idle = torch.zeros(width, dtype=torch.long, device=setting.model.device)
        self.history = list[list[float]]()
        key = [str(place), kind, width, sparsity.k, sparsity.l1, skip, batch, self.rate]
        self.kept = setting.kept("dictionary", cut.data_hash(), setting.seed, *key)

    def run(self) -> Trained:
        """Read all stretches, from where an earlier run stopped."""
        start, last = self._restored(), time.monotonic()
        spent, tokens = {"harvest": 0.0, "train": 0.0}, 0
        total, data = len(self.stretches), None
        for number in range(start, total):
            began = time.perf_counter()
            data = self._read(number)
            spent["harvest"] += time.perf_counter() - began
            if len(data):
                self._stretch(number, data)
            spent["train"] += time.perf_counter() - began
            tokens += int(self.cut.lengths[self.stretches[number].start : self.stretches[number].stop].sum())
            self._tell(self.stretches[number].stop)
            if time.monotonic() - last > SECONDS or number + 1 == total:
                self._write(number + 1)
                last = time.monotonic()
        if not self.parameters:
            raise InputError("The texts hold only first and special tokens, so nothing was learned. Give texts.")
        if data is None or not len(data):
            data = self._read(total - 1)
        speed = {name: tokens / seconds for name, seconds in spent.items() if tokens and self.ahead is None}
        if speed:
            speed["bare"] = self._bare_speed()
        return Trained(self._folded(data), torch.tensor(self.history), speed)

    def _bare_speed(self) -> float:
        """Tokens a second of the plain model, on a pass of the same windows."""
        model, rows = self.setting.model, range(min(len(self.cut), at_once(self.setting, self.cut.length)))
        inputs = self.cut.inputs(model, rows)
        with torch.no_grad():
            model.logits(inputs).sum().item()
            began = time.perf_counter()
            model.logits(inputs).sum().item()
        return int(self.cut.lengths[: len(rows)].sum()) / (time.perf_counter() - began)

    def _read(self, number: int) -> Activations:
        """The values of a stretch, but for tokens of massive norm."""
        data = None if self.ahead is None else harvested(self.setting, self.ahead, number)
        if data is None:
            data = gathered(self.setting, self.place, self.cut, self.stretches[number], self._tell)
        if len(data) and "limits" not in self.scale:
            self.scale["limits"] = torch.tensor(data.limits())
        return data.ordinary(tuple(self.scale["limits"].tolist())) if len(data) else data

    def _tell(self, window: int) -> None:
        """Progress by windows, with how good the dictionary was on the latest stretch."""
        words = "training"
        if self.history:
            tokens, fvu, active, dead = self.history[-1]
            words += f"{BESIDE}{tokens:,.0f} tokens, FVU {fvu:.3f}, {active:.1f} active, {dead:.1%} dead"
        self.setting.tell(words)(window, len(self.cut))

    # One stretch

    def _stretch(self, number: int, data: Activations) -> None:
        """Train on the tokens of a stretch once, in random order."""
        if not self.parameters:
            self._begin(data)
        generator = torch.Generator().manual_seed(self.setting.seed + number)
        given = self._centred(data.given, "in")
        target = given if self.place.one_site else self._centred(data.target, "out")
        order = torch.randperm(len(data), generator=generator).to(given.device)
        sums = torch.zeros(3, dtype=torch.double)
        for i, rows in enumerate(order.split(self.batch)):
            share = (number + i * self.batch / len(data)) / len(self.stretches)
            x = given[rows]
            sums += self._step(x, x if self.place.one_site else target[rows], share)
        tokens = (self.history[-1][0] if self.history else 0) + len(data)
        dead = float((self.idle >= self.dead_after).float().mean())
        self.history.append([tokens, float(sums[0] / sums[1]), float(sums[2] / len(data)), dead])
        if not all(map(_finite, self.history[-1])):
            raise NumericsError("The training gave NaN or infinity. Lower the learning rate.")
        if self.kind == "l1":
            self._resample(number + 1, given, target, generator)

    def _step(self, x: Tensor, y: Tensor, share: float) -> Tensor:
        """One step of the optimiser: squared error, variance and active features, summed over the batch."""
        rise = min(1.0, (share + 1e-9) / WARM_UP) if WARM_UP else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * rise * min(1.0, (1 - share) / (1 - DECAY))
        held = self.parameters
        before = x @ held["W_enc"] + held["b_enc"]
        sparsity = replace(self.sparsity, l1=self.sparsity.l1 * min(1.0, share / DEAD_AFTER))
        features, penalty = KINDS[self.kind](before, held, sparsity)
        out = features @ held["W_dec"] + held["b_dec"]
        if self.skip:
            out = out + x @ held["W_skip"]
        error = y - out
        squared = error.square().sum(-1).mean()
        divisor = 1.0 if self.kind == "jumprelu" else self.scale["variance"]
        loss = squared / self.scale["variance"] + penalty / divisor + AUX * self._revival(before, error.detach())
        self.optimizer.zero_grad()
        loss.backward()
        self._update()
        active = features.detach() > 0
        self.idle = torch.where(active.any(0), 0, self.idle + len(x))
        return torch.tensor(
            [float(squared.detach()) * len(x), float(self.scale["variance"]) * len(x), float(active.sum())]
        )

    def _revival(self, before: Tensor, error: Tensor) -> Tensor:
        """How badly the largest dead features describe the error, over the error's size."""
        dead = (self.idle >= self.dead_after).nonzero()[:, 0]
        if self.kind == "l1" or not len(dead):
            return error.new_zeros(())
        count = min(len(dead), max(1, error.shape[-1] // 2))
        largest = before[:, dead].topk(count, dim=-1, sorted=False)
        features = torch.zeros_like(before[:, dead]).scatter(
            -1, largest.indices, largest.values
        )  # below 0, too: all learn
        left = error - features @ self.parameters["W_dec"][dead]
        size = (error - error.mean(0)).square().sum(-1).mean()
        return left.square().sum(-1).mean() / size.clamp(min=1e-12)

    def _update(self) -> None:
        """A step of Adam; but for L1, decoder directions keep norm 1."""
        W_dec = self.parameters["W_dec"]
        unit = self.kind != "l1"
        if unit and W_dec.grad is not None:
            W_dec.grad -= (W_dec.grad * W_dec.detach()).sum(1, keepdim=True) * W_dec.detach()
        torch.nn.utils.clip_grad_norm_(list(self.parameters.values()), 1.0)
        self.optimizer.step()
        if unit:
            with torch.no_grad():
                W_dec /= W_dec.norm(dim=1, keepdim=True).clamp(min=1e-12)

    def _resample(self, done: int, x: Tensor, y: Tensor, generator: torch.Generator) -> None:
        """Set dead features to inputs that are described badly, drawn by their squared loss."""
        total, held = len(self.stretches), self.parameters
        dead = (self.idle >= self.dead_after).nonzero()[:, 0]
        if not len(dead) or not any(done - 1 < share * total <= done for share in RESAMPLED):
            return
        with torch.no_grad():
            features = (x @ held["W_enc"] + held["b_enc"]).relu()
            loss = (y - features @ held["W_dec"] - held["b_dec"]).square().sum(-1)
            drawn = loss.square().double().cpu().multinomial(len(dead), replacement=True, generator=generator)
            drawn = drawn.to(x.device)
            alive = torch.ones(self.width, dtype=torch.bool, device=x.device).index_fill(0, dead, False)
            norm = held["W_enc"][:, alive].norm(dim=0).mean() if alive.any() else 1.0
            held["W_enc"][:, dead] = 0.2 * norm * torch.nn.functional.normalize(x[drawn], dim=1).T
            held["W_dec"][dead] = torch.nn.functional.normalize(y[drawn] - held["b_dec"], dim=1)
            held["b_enc"][dead] = 0.0
            for name in ("exp_avg", "exp_avg_sq"):
                self.optimizer.state[held["W_enc"]][name][:, dead] = 0.0
                self.optimizer.state[held["W_dec"]][name][dead] = 0.0
                self.optimizer.state[held["b_enc"]][name][dead] = 0.0
        self.idle[dead] = 0

    # Beginning and end

    def _centred(self, x: Tensor, which: str) -> Tensor:
        """Values as training sees them."""
        return (x - self.scale[f"centre_{which}"]) * self.scale[f"factor_{which}"]

    def _begin(self, data: Activations) -> None:
        """Centres, factors and first weights, from the first stretch."""
        for which, values in {"in": data.given, "out": data.target}.items():
            centre = geometric_median(values[:SAMPLE])
            self.scale[f"centre_{which}"] = centre
            self.scale[f"factor_{which}"] = values.shape[1] ** 0.5 / (values - centre).norm(dim=1).mean().clamp(
                min=1e-12
            )
        target = self._centred(data.target, "out")
        self.scale["variance"] = (target - target.mean(0)).square().sum(-1).mean()
        if not float(self.scale["variance"]) > 1e-9:
            raise InputError(
                f"The values at the {self.place} of {self.setting.model.name} are the same at every token of the "
                "texts, so there is nothing to learn. Choose another site or layer, or give more texts."
            )
        generator = torch.Generator().manual_seed(self.setting.seed)
        d_in, d_out = self.place.widths(self.setting.model)
        W_dec = torch.nn.functional.normalize(torch.randn(self.width, d_out, generator=generator), dim=1)
        W_dec = W_dec.to(target.device)
        held = {"W_enc": W_dec.T.contiguous(), "b_enc": W_dec.new_zeros(self.width), "W_dec": W_dec}
        held["b_dec"] = W_dec.new_zeros(d_out)
        if self.skip:
            held["W_skip"] = W_dec.new_zeros(d_in, d_out)
        if self.kind == "jumprelu":
            first = self._threshold(self._centred(data.given[:SAMPLE], "in") @ held["W_enc"])
            self.scale["kernel"] = BANDWIDTH * first
            held["log_threshold"] = first.log().expand(self.width).clone()
        self._hold(held)

    def _threshold(self, before: Tensor) -> Tensor:
        """What k features a token exceed on average."""
        values = before.relu().flatten().sort(descending=True).values
        return values[min(self.sparsity.k * len(before), len(values)) - 1].clamp(min=1e-6)

    def _hold(self, held: dict[str, Tensor]) -> None:
        """Take tensors as the parameters that learn."""
        self.parameters = {name: value.detach().clone().requires_grad_() for name, value in held.items()}
        self.optimizer = torch.optim.Adam(list(self.parameters.values()), lr=self.rate, eps=1e-8, fused=True)
        if "kernel" in self.scale:
            self.sparsity = replace(self.sparsity, width=float(self.scale["kernel"]))

    @torch.no_grad()
    def _folded(self, data: Activations) -> Dictionary:
        """The dictionary for the model's own values: centres, factors and norms folded in."""
        held, scale = {name: value.detach() for name, value in self.parameters.items()}, self.scale
        threshold = None
        if self.kind == "jumprelu":
            threshold = held["log_threshold"].exp()
        elif self.kind == "batchtopk":
            given = self._centred(data.given[:SAMPLE], "in")
            threshold = self._threshold(given @ held["W_enc"] + held["b_enc"]).expand(self.width).clone()
        W_enc = held["W_enc"] * scale["factor_in"] / scale["factor_out"]
        b_enc = held["b_enc"] / scale["factor_out"] - scale["centre_in"] @ W_enc
        b_dec = scale["centre_out"] + held["b_dec"] / scale["factor_out"]
        W_skip = None
        if self.skip:
            W_skip = held["W_skip"] * scale["factor_in"] / scale["factor_out"]
            b_dec = b_dec - scale["centre_in"] @ W_skip
        dictionary = Dictionary(
            place=self.place,
            W_enc=W_enc,
            b_enc=b_enc,
            W_dec=held["W_dec"].clone(),
            b_dec=b_dec,
            W_skip=W_skip,
            k=self.sparsity.k if self.kind == "topk" else None,
            threshold=None if threshold is None else threshold / scale["factor_out"],
            facts=self._facts(),
        )
        return dictionary.unit_norms()

    def _facts(self) -> dict[str, Any]:
        """How it was trained."""
        return {
            "model": self.setting.model.name,
            "kind": self.kind,
            "k": self.sparsity.k,
            **({"l1": self.sparsity.l1} if self.kind == "l1" else {}),
            "tokens": int(self.history[-1][0]),
            "largest_norms": self.scale["limits"].tolist(),
            "windows": len(self.cut),
            "length": self.cut.length,
            "texts_hash": self.cut.data_hash(),
            "batch": self.batch,
            "learning_rate": self.rate,
            "seed": self.setting.seed,
        }

    # Going on

    def _write(self, done: int) -> None:
        """Write down what is learned so far."""
        tensors = {f"parameter.{name}": value.detach() for name, value in self.parameters.items()}
        for name, value in self.parameters.items():
            state = self.optimizer.state[value]
            tensors |= {f"{key}.{name}": state[key] for key in ("step", "exp_avg", "exp_avg_sq")}
        tensors |= {f"scale.{name}": value for name, value in self.scale.items()}
        history = torch.tensor(self.history, dtype=torch.double).view(-1, 4)
        self.kept.write({**tensors, "idle": self.idle, "history": history}, {"stretches": done})

    def _restored(self) -> int:
        """How many stretches an earlier run has trained on."""
        if (before := self.kept.read()) is None:
            return 0
        tensors, state = before
        device = self.setting.model.device

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): value.to(device)
                for name, value in tensors.items()
                if name.startswith(prefix)
            }

        self.scale, self.idle = part("scale."), tensors["idle"].to(device)
        self.history = tensors["history"].tolist()
        if held := part("parameter."):
            self._hold(held)
            for name, value in self.parameters.items():
                self.optimizer.state[value] = {key: part(f"{key}.")[name] for key in ("step", "exp_avg", "exp_avg_sq")}
        return int(state["stretches"])


def stretches(cut: Windows) -> list[range]:
    """Windows by stretch of at most `STRETCH` tokens, all about equally many."""
    count = -(-len(cut) // max(1, STRETCH // cut.length))
    ends = [round(i * len(cut) / count) for i in range(count + 1)]
    return [range(start, end) for start, end in pairwise(ends)]


def geometric_median(x: Float[Tensor, "token d"], steps: int = 20) -> Float[Tensor, " d"]:
    """The point with the smallest sum of distances to all others (Weiszfeld); a few far ones do not move it."""
    centre = x.mean(0)
    for _ in range(steps):
        weight = 1 / (x - centre).norm(dim=1, keepdim=True).clamp(min=1e-6)
        centre = (weight * x).sum(0) / weight.sum()
    return centre


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
