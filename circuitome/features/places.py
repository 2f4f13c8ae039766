"""Where a dictionary belongs: the values that it reads, and those that it describes.

resid       the stream behind a block
mlp         what an MLP adds to the stream, behind a post-norm
attn        what an attention adds to the stream
z           what the attention's output projection reads: all heads side by side
transcoder  reads the MLP's normed input and describes what the MLP adds to the stream
stream-transcoder   reads the stream in front of the MLP's norm instead
"""

from dataclasses import dataclass

from circuitome.errors import InputError, unknown_name
from circuitome.models.model import Model

_SITES = {
    "resid": ("a{}.resid_post", "a{}.resid_post"),
    "mlp": ("m{}.out", "m{}.out"),
    "attn": ("a{}.out", "a{}.out"),
    "z": ("a{}.z", "a{}.z"),
    "transcoder": ("m{}.in", "m{}.out"),
    "stream-transcoder": ("m{}.resid_mid", "m{}.out"),
}
SITES = tuple(_SITES)
"""Names of all kinds of sites."""
_WORDS = {
    "resid": "stream behind layer {}",
    "mlp": "MLP output of layer {}",
    "attn": "attention output of layer {}",
    "z": "head outputs z of layer {}",
    "transcoder": "MLP of layer {}",
    "stream-transcoder": "MLP of layer {}",
}


@dataclass(frozen=True)
class Place:
    """The values of one block that a dictionary reads and describes."""

    site: str
    """A name in `SITES`."""
    layer: int
    """The block, from 0."""

    def __post_init__(self) -> None:
        if self.site not in _SITES:
            raise unknown_name("site", self.site, SITES)

    def __str__(self) -> str:
        return f"{self.site} of layer {self.layer}"

    @property
    def words(self) -> str:
        """What it describes, in words."""
        return _WORDS[self.site].format(self.layer)

    @property
    def reads(self) -> str:
        """Name of the site that it reads, as `cm.hook` takes it."""
        return _SITES[self.site][0].format(self.layer)

    @property
    def describes(self) -> str:
        """Name of the site whose values it describes."""
        return _SITES[self.site][1].format(self.layer)

    @property
    def one_site(self) -> bool:
        """Whether it describes what it reads."""
        return self.reads == self.describes

    def widths(self, model: Model) -> tuple[int, int]:
        """Widths of what it reads and of what it describes."""
        width = model.heads.q * model.heads.width if self.site == "z" else model.d_model
        return width, width

    def check(self, model: Model) -> None:
        """Raises `InputError` where the model has no such layer, or no MLPs."""
        if not 0 <= self.layer < len(model.blocks):
            raise InputError(
                f"There is no layer {self.layer}; {model.name} has layers 0 to {len(model.blocks) - 1}. Give --layer."
            )
        if self.describes.startswith("m") and not model.graph.mlps:
            raise InputError(f"{model.name} has no MLPs, so there is no site {self.site}.")
