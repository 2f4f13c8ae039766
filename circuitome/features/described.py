"""What each feature of a dictionary is: how often it fires and where, and what it writes.

One pass over texts keeps for every feature its largest activations, at most one a window, and activations drawn at
random from all of them, which show what it usually is (the largest alone mislead: Bricken et al. 2023). What it writes
is its decoder row as the unembedding sees it, with the final norm's gain folded in, and the neurons whose output
weights point the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitome.engine.setting import Setting, method
from circuitome.errors import InputError
from circuitome.features.activations import Activations, gathered, passes
from circuitome.features.clamping import check_features
from circuitome.features.dictionary import Dictionary
from circuitome.features.dictionary_quality import LENGTH, TOKENS, check_width
from circuitome.models.model import Model
from circuitome.neurons.projections import logits_of
from circuitome.neurons.text_windows import Windows, packed, windows
from circuitome.weights.folding import outputs_are_tokens

KEEP, PROMOTED, NEIGHBOURS = 10, 10, 3
"""Examples of each kind, tokens promoted and suppressed, and neurons that are kept of each feature."""
CHUNK = 512
"""Features that are projected at a time."""


@dataclass(frozen=True, eq=False)
class Features:
    """Every feature of a dictionary on texts."""

    dictionary: Dictionary
    """The dictionary."""
    windows: Windows
    """The texts; places are window times length plus position."""
    tokens: int
    """Tokens that were counted."""
    active: Int[Tensor, " feature"]
    """Tokens on which each feature was active."""
    mean: Float[Tensor, " feature"]
    """Mean activation over these; 0 for a feature that never fired."""
    top: Float[Tensor, "feature keep"]
    """Largest activations, at most one a window; 0 where there are fewer."""
    top_places: Int[Tensor, "feature keep"]
    """Where they are; -1 where there are fewer."""
    usual: Float[Tensor, "feature keep"]
    """Activations drawn at random from all, the largest first; 0 where there are fewer."""
    usual_places: Int[Tensor, "feature keep"]
    """Where they are; -1 where there are fewer."""
    promoted: Int[Tensor, "feature token"]
    """Tokens whose logits it raises most; empty for a model whose outputs are no tokens."""
    promoted_by: Float[Tensor, "feature token"]
    """By how much, for one unit of activation, over the final norm's scale and less the mean of all tokens."""
    suppressed: Int[Tensor, "feature token"]
    """Tokens whose logits it lowers most."""
    suppressed_by: Float[Tensor, "feature token"]
    """By how much."""
    neurons: Int[Tensor, "feature neighbour 2"]
    """Layer and number of the MLP neurons whose output weights are most like its direction."""
    cosine: Float[Tensor, "feature neighbour"]
    """Their cosine."""

    def __repr__(self) -> str:
        dead = int((self.active == 0).sum())
        where = self.dictionary.place
        return f"Features({len(self.active)} of the {where}, {dead} never active on {self.tokens:,} tokens)"

    @property
    def density(self) -> Float[Tensor, " feature"]:
        """Share of tokens on which each is active."""
        return self.active.double().div(max(1, self.tokens)).float()

    def examples(self, feature: int, *, usual: bool = False) -> list[tuple[int, int, float]]:
        """Window, position and activation of its largest (or usual) examples."""
        check_features(self.dictionary, [feature])
        values, places = (self.usual, self.usual_places) if usual else (self.top, self.top_places)
        pairs = zip(places[feature].tolist(), values[feature].tolist(), strict=True)
        return [(*divmod(place, self.windows.length), value) for place, value in pairs if place >= 0]


@method
def describe(
    setting: Setting,
    dictionary: Dictionary,
    texts: str | Sequence[str] | Windows,
    *,
    length: int = LENGTH,
    tokens: int | None = TOKENS,
    keep: int = KEEP,
) -> Features:
    """Every feature of a dictionary: how often it fires on `texts` and where, what it writes, and neurons like it.

    >>> model = cm.load("known-ioi")
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), model.d_model, 40, k=4)
    >>> found = cm.features.describe(model, dictionary, ["Ann and Bob met then Bob gave to"] * 3, length=8)
    >>> int(found.active.sum()) == 4 * found.tokens, found.top.shape
    (True, torch.Size([40, 10]))

    Raises `InputError` where the dictionary does not fit the model, and for keep < 1.
    """
    check_width(setting, dictionary)
    if keep < 1:
        raise InputError(f"keep is the number of examples and must be at least 1, got {keep}.")
    model = setting.model
    cut = (
        texts if isinstance(texts, Windows) else windows(model, texts, length=length, tokens=tokens, seed=setting.seed)
    )
    own, seen = dictionary.to(model.device), Seen(len(dictionary), keep, cut.length, setting.seed, model.device)
    tell = setting.tell("reading texts")
    for part in passes(setting, dictionary.place, cut):
        if len(part):
            seen.add(part, own.encode(part.given))
            tell(int(part.window[-1]) + 1, len(cut))
    if not seen.tokens:
        raise InputError("The texts hold only first and special tokens, so nothing was counted. Give texts with words.")
    directions = in_stream(model, own)
    usual, order = seen.usual.sort(dim=1, descending=True, stable=True)
    return Features(
        dictionary=dictionary,
        windows=cut,
        tokens=seen.tokens,
        active=seen.active.cpu(),
        mean=(seen.total / seen.active.clamp(min=1)).float().cpu(),
        top=seen.top.cpu(),
        top_places=seen.top_places.cpu(),
        usual=usual.cpu(),
        usual_places=seen.usual_places.gather(1, order).cpu(),
        **_tokens(model, directions),
        **_neighbours(model, directions),
    )


class Seen:
    """What is kept of every feature while texts are read."""

    def __init__(self, features: int, keep: int, length: int, seed: int, device: torch.device) -> None:
        self.tokens, self.length, self.keep = 0, length, keep
        self.generator = torch.Generator().manual_seed(seed)
        self.active = torch.zeros(features, dtype=torch.long, device=device)
        self.total = torch.zeros(features, dtype=torch.double, device=device)
        shape = (features, keep)
        self.top, self.usual, self.keys = (torch.zeros(shape, device=device) for _ in range(3))
        self.top_places, self.usual_places = (torch.full(shape, -1, device=device) for _ in range(2))

    def add(self, part: Activations, features: Float[Tensor, "token feature"]) -> None:
        """The features of some tokens, in whole windows."""
        self.tokens += len(part)
        self.active += (features > 0).sum(0)
        self.total += features.sum(0, dtype=torch.double)
        places = part.window * self.length + part.position
        for window in part.window.unique():
            rows = part.window == window
            value, at = features[rows].max(0)
            self._merge_top(value[:, None], places[rows][at][:, None])
        keys = torch.rand(len(features), 1, generator=self.generator).to(features.device).expand_as(features)
        keys = torch.where(features > 0, (keys + _mixed(features.shape[1], features.device)) % 1.0 + 1e-9, 0.0)
        best = keys.topk(min(self.keep, len(keys)), dim=0)
        values = features.gather(0, best.indices)
        self._merge_usual(best.values.T, values.T, places[best.indices].T)

    def _merge_top(self, values: Tensor, places: Tensor) -> None:
        places = torch.where(values > 0, places, -1)
        joined, where = torch.cat([self.top, values], 1), torch.cat([self.top_places, places], 1)
        self.top, order = joined.topk(self.keep, dim=1)
        self.top_places = where.gather(1, order)

    def _merge_usual(self, keys: Tensor, values: Tensor, places: Tensor) -> None:
        places = torch.where(keys > 0, places, -1)
        joined = torch.cat([self.keys, keys], 1)
        self.keys, order = joined.topk(self.keep, dim=1)
        self.usual = torch.cat([self.usual, values], 1).gather(1, order)
        self.usual_places = torch.cat([self.usual_places, places], 1).gather(1, order)


def _mixed(features: int, device: torch.device) -> Float[Tensor, " feature"]:
    """A shift for each feature, so that features do not draw the same tokens: multiples of the golden ratio."""
    return torch.arange(features, device=device) * 0.6180339887 % 1.0


def in_stream(model: Model, dictionary: Dictionary) -> Float[Tensor, "feature d_model"]:
    """What each feature writes to the residual stream for one unit of activation."""
    rows, layer = dictionary.W_dec, dictionary.place.layer
    return rows @ model.blocks[layer].head_weights().flatten(0, 1) if dictionary.place.site == "z" else rows


def _tokens(model: Model, directions: Tensor) -> dict[str, Tensor]:
    """Tokens that features promote and suppress."""
    names = ("promoted_by", "promoted", "suppressed_by", "suppressed")
    if not outputs_are_tokens(model):
        empty = directions.new_zeros(len(directions), 0)
        return {name: empty if name.endswith("by") else empty.long() for name in names}
    parts = list[tuple[Tensor, ...]]()
    for some in directions.split(CHUNK):
        logits = logits_of(model, some)
        k = min(PROMOTED, logits.shape[1])
        parts.append((*logits.topk(k), *logits.topk(k, largest=False)))
    return {name: torch.cat(part).cpu() for name, part in zip(names, zip(*parts, strict=True), strict=True)}


def _neighbours(model: Model, directions: Tensor) -> dict[str, Tensor]:
    """The neurons whose output weights are most like the features' directions."""
    unit = torch.nn.functional.normalize(directions, dim=1)
    best, who = directions.new_zeros(len(unit), 0), torch.zeros(len(unit), 0, 2, dtype=torch.long, device=unit.device)
    for layer in range(len(model.blocks) if model.graph.mlps else 0):
        cosine = unit @ torch.nn.functional.normalize(model.blocks[layer].neuron_weights(), dim=1).T
        values, index = cosine.topk(min(NEIGHBOURS, cosine.shape[1]), dim=1)
        joined = torch.cat([best, values], 1)
        names = torch.cat([who, torch.stack([torch.full_like(index, layer), index], 2)], 1)
        best, order = joined.topk(min(NEIGHBOURS, joined.shape[1]), dim=1)
        who = names.gather(1, order[..., None].expand(-1, -1, 2))
    return {"neurons": who.cpu(), "cosine": best.cpu()}


def feature_activations(model: Model, dictionary: Dictionary, ids: Sequence[int]) -> Float[Tensor, "pos feature"]:
    """Every feature at every token of a prompt; NaN at the tokens that are not counted, the first and special ones.

    >>> model = cm.load("known-ioi")
    >>> dictionary = cm.features.random_dictionary(cm.features.Place("resid", 0), model.d_model, 40, k=4)
    >>> cm.features.feature_activations(model, dictionary, model.encode("Ann and Bob")).shape
    torch.Size([4, 40])

    Raises `InputError` for fewer than two tokens and where the dictionary does not fit the model.
    """
    check_width(Setting(model), dictionary)
    if len(ids) < 2:
        raise InputError(f"The prompt has {len(ids)} tokens; the first is not counted, so give at least two.")
    part = gathered(Setting(model), dictionary.place, packed([list(ids)]), range(1))
    values = torch.full((len(ids), len(dictionary)), torch.nan)
    values[part.position.cpu()] = dictionary.to(model.device).encode(part.given).cpu()
    return values
