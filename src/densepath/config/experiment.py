"""Arguments of an experiment; those of a method stand in its file. No torch: `--help` reads this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from densepath.config.options import check_at_least, option
from densepath.config.run import RunArguments
from densepath.errors import ConfigError


@dataclass
class ExperimentArguments(RunArguments):
    """Arguments of `densepath experiment`: any key of `densepath run` holds for every cell."""

    output_dir: str = option("runs/experiment", "Folder of the grid. The same command goes on where it stopped.")
    model_name_or_path: str = option("", "Model before SFT of the settings that name none.")
    dataset_name: str = option("", "Demonstrations of the settings that name none.")
    seeds: list[int] = option([0, 1, 2], "Seeds; every method of every setting is run with each.")
    num_workers: int | None = option(
        None, "Cells run at once, each in a process of its own. None: as many as cores and memory allow.", least=1
    )
    settings: Mapping[str, Any] = option({}, "name -> keys of its cells, in the recipe.")
    methods: Mapping[str, Any] = option(
        {}, "name -> keys: method, label, control, tune, settings, and those of its cells."
    )

    def check_effect(self) -> None:
        """What has no effect here may have one in a setting, which is looked at in its place."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.arms != RunArguments().arms:
            raise ConfigError("arms is a key of densepath run; the arms of an experiment are its methods")
        if self.seed != RunArguments().seed:
            raise ConfigError("seed is a key of densepath run; an experiment is run with each of its seeds")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds={self.seeds}: give each seed once, and at least one")
        check_at_least("seeds", min(self.seeds), 0)
        for name in ("settings", "methods"):
            if not isinstance(getattr(self, name), dict) or not getattr(self, name):
                raise ConfigError(f"{name} is empty or no mapping; a recipe (--config) has to name them: see recipes/")
