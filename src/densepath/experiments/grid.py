"""The whole grid: every cell once, the choices on validation, then the chosen ones on the test prompts."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.config.experiment import ExperimentArguments
from densepath.data.regimes import Regime
from densepath.experiments.evaluate import decoding, read_results, read_values
from densepath.experiments.recipe import MethodPlan, Setting, Variant
from densepath.experiments.regimes import STEPS, before_sft_path
from densepath.experiments.run_cell import CellJob, SFTJob, run_before_sft, run_cell, run_sft_job
from densepath.experiments.scheduler import Task
from densepath.models.references import reference_name
from densepath.pipeline.data import regime_of
from densepath.pipeline.run_folder import RunFolder
from densepath.records.arm import Arm, ArmResult, Budget
from densepath.records.codec import field_names, to_json
from densepath.stats.seeds import seed_mean


def _leaves_reference_open(plan: MethodPlan) -> bool:
    return plan.kind == "dpr" and any("auto" in (v.arguments.reference, v.arguments.beta) for v in plan.variants)


def _report_reference(setting: Setting) -> str:
    """The reference of the reward in the table: the setting's, else the one nearest to half-way, the paper's."""
    if setting.arguments.reference != "auto":
        return setting.arguments.reference
    kept = setting.arguments.reference_fractions or [0.0]
    return reference_name(min(kept, key=lambda fraction: abs(fraction - 0.5)))


"""What a cell's training is accounted in."""


@dataclass
class Grid:
    """An experiment's cells on disk.

    Attributes:
        folder: of the experiment.
        settings: what is run.
        arguments: of the command.
        pretraining_steps: of the digit regimes' model before SFT.
    """

    folder: Path
    settings: list[Setting]
    arguments: ExperimentArguments
    pretraining_steps: int = STEPS

    # -- places ------------------------------------------------------------------------------------------------

    def source(self, setting: Setting, seed: int) -> Path:
        """Folder of an SFT run."""
        return self.folder / setting.name / f"seed-{seed}"

    def cell(self, setting: Setting, seed: int, variant: Variant) -> Path:
        """Folder of a cell."""
        return self.source(setting, seed) / "cells" / variant.name

    def cells(self) -> Iterator[tuple[Setting, MethodPlan, Variant, int]]:
        """All cells, seed by seed."""
        for setting in self.settings:
            for seed in self.arguments.seeds:
                for plan in setting.methods.values():
                    for variant in plan.variants:
                        yield setting, plan, variant, seed

    # -- tasks -------------------------------------------------------------------------------------------------

    def training_tasks(self) -> dict[Hashable, Task]:
        """Models before SFT, SFT runs, and every cell; a method that validation need not tune meets its test here."""
        tasks: dict[Hashable, Task] = {}
        for setting in self.settings:
            for seed in self.arguments.seeds:
                needs: tuple[Hashable, ...] = ()
                regime = regime_of(setting.arguments.dataset_name)
                if regime is not None:
                    path = before_sft_path(self.folder / "before_sft", regime, seed)
                    needs = (str(path.relative_to(self.folder)),)
                    arguments = (self.folder / "before_sft", regime, seed, self.pretraining_steps)
                    tasks.setdefault(needs[0], Task(run_before_sft, arguments))
                sft = SFTJob(
                    self.source(setting, seed),
                    self._seeded(setting.arguments, self.source(setting, seed), seed, regime),
                    setting.others,
                    any(_leaves_reference_open(plan) for plan in setting.methods.values()),
                )
                tasks[setting.name, f"seed-{seed}", "SFT"] = Task(run_sft_job, (sft,), needs)
        for setting, plan, variant, seed in self.cells():
            splits = ("validation", "test") if len(plan.variants) == 1 else ("validation",)
            needs = ((setting.name, f"seed-{seed}", "SFT"),)
            like = self._like(setting, plan, variant)
            if like is not None:
                needs = (*needs, (setting.name, f"seed-{seed}", like.name))
            job = self.job(setting, plan, variant, seed, splits)
            tasks[setting.name, f"seed-{seed}", variant.name] = Task(run_cell, (job,), needs)
        return tasks

    def test_tasks(self) -> dict[Hashable, Task]:
        """The chosen variants of tuned methods on the test prompts."""
        tasks: dict[Hashable, Task] = {}
        for setting in self.settings:
            for plan in setting.methods.values():
                variant = self.chosen(setting, plan)
                if len(plan.variants) == 1 or variant is None:
                    continue
                for seed in self.arguments.seeds:
                    if self._is_trained(self.cell(setting, seed, variant)):
                        job = self.job(setting, plan, variant, seed, ("test",))
                        tasks[setting.name, f"seed-{seed}", variant.name, "test"] = Task(run_cell, (job,))
        return tasks

    def job(self, setting: Setting, plan: MethodPlan, variant: Variant, seed: int, splits: tuple[str, ...]) -> CellJob:
        """A cell, with all that its process has to know."""
        like = self._like(setting, plan, variant)
        folder = self.cell(setting, seed, variant)
        return CellJob(
            kind=plan.kind,
            source=self.source(setting, seed),
            folder=folder,
            arguments=self._seeded(variant.arguments, folder, seed, regime_of(variant.arguments.dataset_name)),
            others=variant.others,
            report_reference=_report_reference(setting),
            splits=splits,
            like=None if like is None else self.cell(setting, seed, like),
        )

    def _seeded(self, arguments: Any, folder: Path, seed: int, regime: Regime | None) -> Any:
        changes: dict[str, Any] = {"seed": seed, "output_dir": str(folder)}
        if regime is not None:
            changes["model_name_or_path"] = str(before_sft_path(self.folder / "before_sft", regime, seed))
        return dataclasses.replace(arguments, **changes)

    def _like(self, setting: Setting, plan: MethodPlan, variant: Variant) -> Variant | None:
        """The cell whose FLOPs or seconds continued SFT matches: the first variant of the method that it names."""
        if plan.kind != "continued_sft" or variant.arguments.budget == "samples":
            return None
        return setting.methods[variant.arguments.budget_of].variants[0]

    # -- results -----------------------------------------------------------------------------------------------

    def validation_values(self, setting: Setting, variant: Variant) -> list[list[float]]:
        """Verdicts on the validation prompts at the first temperature, for each seed that has finished."""
        first = variant.arguments.eval_temperatures[0]
        folders = (self.cell(setting, seed, variant) for seed in self.arguments.seeds)
        return [values for folder in folders if (values := read_values(folder, "validation", first)) is not None]

    def chosen(self, setting: Setting, plan: MethodPlan) -> Variant | None:
        """The variant with the best validation mean over all seeds; None while one has no result."""
        if len(plan.variants) == 1:
            return plan.variants[0]
        found = {variant.name: self.validation_values(setting, variant) for variant in plan.variants}
        complete = [v for v in plan.variants if len(found[v.name]) == len(self.arguments.seeds)]
        if not complete:
            return None
        return max(complete, key=lambda variant: statistics.mean(map(statistics.mean, found[variant.name])))

    def results(self) -> list[ArmResult]:
        """Validation and test results of the chosen variant of every method."""
        found = []
        for setting in self.settings:
            for plan in setting.methods.values():
                variant = self.chosen(setting, plan)
                if variant is None:
                    continue
                for seed in self.arguments.seeds:
                    folder = self.cell(setting, seed, variant)
                    if not self._is_trained(folder):
                        continue
                    outcome = RunFolder(folder, read_only=True).outcome("train")
                    budget = Budget(**{name: float(outcome[name]) for name in field_names(Budget)})
                    for split in ("validation", "test"):
                        found += read_results(
                            folder,
                            split,
                            variant.arguments.eval_temperatures,
                            budget=budget,
                            setting=setting.name,
                            arm=Arm(plan.name, plan.label, plan.control),
                            seed=seed,
                        )
        return found

    def sweeps(self) -> list[dict[str, Any]]:
        """Every variant of every tuned method with its mean on validation, and which was chosen."""
        return [
            {
                "setting": setting.name,
                "method": plan.label,
                "variant": variant.name.partition(",")[2],
                "decoding": decoding(variant.arguments.eval_temperatures[0]),
                "seeds": len(values),
                "value": to_json(seed_mean(values)) if values else None,
                "chosen": variant is self.chosen(setting, plan),
            }
            for setting in self.settings
            for plan in setting.methods.values()
            if len(plan.variants) > 1
            for variant in plan.variants
            for values in [self.validation_values(setting, variant)]
        ]

    @staticmethod
    def _is_trained(folder: Path) -> bool:
        return RunFolder(folder, read_only=True).is_done("train")
