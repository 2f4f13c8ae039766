"""What a study's run is given besides its settings: the model, its prompts, progress, and a place to keep work in."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import circuitome as cm
from circuitome.progress import Progress, silent
from circuitome.studies.settings import ModelSettings, PromptSettings, RunSettings, Settings

if TYPE_CHECKING:
    from circuitome.engine.setting import Setting
    from circuitome.runs.reopen import Reopened
    from circuitome.tasks.held_out import Split


Models: TypeAlias = "dict[tuple[str, str | None, str | None], cm.Model] | None"
"""Loaded models by name, device and precision."""


class Context:
    """Everything around one run. Model and prompts are made when they are first asked for."""

    def __init__(
        self, settings: Settings, progress: Progress = silent, folder: Path | None = None, models: Models = None
    ) -> None:
        """`folder` is where long work keeps what is done so far (None: nowhere), `models` what is loaded already."""
        self.settings, self.progress, self.folder, self.models = settings, progress, folder, models

    @cached_property
    def model(self) -> "cm.Model":
        """The settings' model, or that of the run they name. Raises what `load` raises."""
        if isinstance(self.settings, RunSettings):
            return self.reopened.model
        assert isinstance(self.settings, ModelSettings), "these settings name no model"
        self.progress("loading the model", 0, 1)
        model = self.load(self.settings.model)
        self.progress("loading the model", 1, 1)
        return model

    def load(self, name: str) -> "cm.Model":
        """A model, on the settings' device and in their precision."""
        import torch

        assert isinstance(self.settings, ModelSettings), "these settings name no model"
        key = (name, self.settings.device, self.settings.dtype)
        if self.models is not None and key in self.models:
            return self.models[key].with_activations_on(self.settings.activations)
        dtype = None if self.settings.dtype is None else getattr(torch, self.settings.dtype)
        model = cm.load(name, device=self.settings.device, dtype=dtype)
        if self.models is not None:
            self.models[key] = model
        return model.with_activations_on(self.settings.activations)

    @cached_property
    def prompts(self) -> "Split":
        """The settings' prompts with those that are held apart, or those of the run they name."""
        if isinstance(self.settings, RunSettings):
            return self.reopened.prompts
        assert isinstance(self.settings, PromptSettings), "these settings name no prompts"
        from circuitome.engine.ablation import UNALIGNED

        aligned = self.ablation not in UNALIGNED
        return self.settings.origin().parts(self.model, aligned=aligned, max_memory=self.settings.max_memory)

    @cached_property
    def task(self) -> "cm.Task":
        """The prompts that the study works on."""
        return self.prompts.search

    @cached_property
    def reopened(self) -> "Reopened":
        """The run that the settings name: its model, prompts and circuit. Raises `RunError` where they changed."""
        from circuitome.runs.reopen import reopened

        assert isinstance(self.settings, RunSettings), "these settings name no run"
        self.progress("loading the run", 0, 1)
        run = reopened(Path(self.settings.run), device=self.settings.device, activations=self.settings.activations)
        self.progress("loading the run", 1, 1)
        return run

    @property
    def ablation(self) -> str:
        """What ablated edges carry: of the settings, or of the run they name."""
        if isinstance(self.settings, RunSettings):
            return self.reopened.ablation
        return str(getattr(self.settings, "ablation", "corrupted"))

    @cached_property
    def setting(self) -> "Setting":
        """What methods are given: model, prompts if there are any, ablation, budget, seed, progress."""
        from circuitome.engine.setting import Setting

        prompts = self.task if isinstance(self.settings, (PromptSettings, RunSettings)) else None
        return Setting(
            self.model,
            prompts,
            ablation=self.ablation if prompts is not None else "corrupted",
            max_memory=self.settings.max_memory,
            seed=self.settings.seed,
            progress=self.progress,
        )

    def watch(self, progress: Progress) -> None:
        """Tell this progress from now on; before the setting is made, which keeps its own."""
        assert "setting" not in vars(self), "the setting is made already"
        self.progress = progress

    def tell(self, what: str) -> Callable[[int, int], None]:
        """Progress on one phase: a function of how much is done and how much there is."""
        return lambda done, total: self.progress(what, done, total)

    def file(self, name: str) -> Path | None:
        """A file in which a long method keeps what is done so far."""
        return None if self.folder is None else self.folder / name
