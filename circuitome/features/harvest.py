"""Activations made ahead of a training: a file for each stretch of texts, whoever makes which."""

from pathlib import Path

from safetensors.torch import load_file, save_file

from circuitome.engine.setting import Setting
from circuitome.engine.shards import WHOLE, Shard, shard_of
from circuitome.features.activations import Activations, gathered
from circuitome.features.places import Place
from circuitome.neurons.text_windows import Windows

NAMES = ("given", "target", "window", "position")


def harvest(
    setting: Setting, place: Place, texts: Windows, stretches: list[range], folder: Path, shard: Shard = WHOLE
) -> None:
    """Write the activations of a shard's stretches to `folder`, in the model's precision; those that are there stay.

    Takes `tokens x (d_in + d_out)` numbers of disk, once where the dictionary describes what it reads. Raises as
    `gathered`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine, tell = shard_of(len(stretches), shard), setting.tell("gathering activations")
    for number in mine:
        path = file_of(folder, number)
        if not path.exists():
            data = gathered(setting, place, texts, stretches[number])
            tensors = {name: getattr(data, name).cpu() for name in NAMES[place.one_site :]}
            for name in NAMES[place.one_site : 2]:
                tensors[name] = tensors[name].to(setting.model.dtype)
            part = path.with_suffix(".part")
            save_file(tensors, part)
            part.replace(path)
        tell(number - mine.start + 1, len(mine))


def harvested(setting: Setting, folder: Path, number: int) -> Activations | None:
    """What `harvest` wrote of a stretch, on the model's device; None where it is not there."""
    path = file_of(folder, number)
    if not path.exists():
        return None
    held = {name: value.to(setting.model.device) for name, value in load_file(path).items()}
    target = held["target"].float()
    given = held["given"].float() if "given" in held else target
    return Activations(given, target, held["window"], held["position"])


def file_of(folder: Path, number: int) -> Path:
    """The file of a stretch."""
    return folder / f"stretch-{number:06d}.safetensors"
