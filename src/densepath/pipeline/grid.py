"""The whole grid: every cell once, the choices on validation, then the chosen ones on the test prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densepath.choice.arms import best_decoding, best_variant
from densepath.config.run import RunArguments
from densepath.data.regimes import Regime
from densepath.evals.generation import decoding_name
from densepath.evidence.cells import is_measured, verdicts
from densepath.methods import SFTRun
from densepath.pipeline.cells import CellJob, SFTJob, run_before_sft, run_cell, run_sft_job
from densepath.pipeline.data import regime_of
from densepath.pipeline.evaluation import Evaluation, read_result
from densepath.pipeline.recipe import MethodPlan, Setting, Variant, left_open, matched_with
from densepath.pipeline.regimes import STEPS, before_sft_path
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.scheduler import Task
from densepath.records.arm import ArmResult
from densepath.records.results import Sweep
from densepath.stats.seeds import seed_mean


@dataclass(frozen=True)
class Grid:
    """Settings, seeds and arms, and where their cells lie on disk.

    Attributes:
        folder: of the grid.
        settings: what is run.
        seeds: every arm of every setting is run with each.
        flat: one setting with one seed, whose folder is the grid's own: `densepath run`.
        pretraining_steps: of the digit regimes' model before SFT.
        refused: keys of training tasks that were refused. What lies in their cells, of another recipe, is not read.
    """

    folder: Path
    settings: Sequence[Setting]
    seeds: Sequence[int]
    flat: bool = False
    pretraining_steps: int = STEPS
    refused: frozenset[Hashable] = frozenset()

    # -- places ------------------------------------------------------------------------------------------------

    def sft(self, setting: Setting, seed: int) -> SFTRun:
        """An SFT run."""
        path = self.folder if self.flat else self.folder / setting.name / f"seed-{seed}"
        return SFTRun(path, self._seeded(setting.arguments, path, seed, regime_of(setting.arguments.dataset_name)))

    def cell(self, setting: Setting, seed: int, variant: Variant) -> Path:
        """Folder of a cell."""
        place = self.folder if self.flat else self.folder / setting.name / f"seed-{seed}" / "cells"
        return place / variant.name

    def cells(self) -> Iterator[tuple[Setting, MethodPlan, Variant, int]]:
        """All cells, seed by seed."""
        for setting in self.settings:
            for seed in self.seeds:
                for plan in setting.methods.values():
                    for variant in plan.variants:
                        yield setting, plan, variant, seed

    # -- tasks -------------------------------------------------------------------------------------------------

    def training_tasks(self) -> dict[Hashable, Task]:
        """Models before SFT, SFT runs, and every cell; a method that validation need not tune meets its test here."""
        tasks: dict[Hashable, Task] = {}
        for setting in self.settings:
            for seed in self.seeds:
                needs: tuple[Hashable, ...] = ()
                regime = regime_of(setting.arguments.dataset_name)
                if regime is not None:
                    path = before_sft_path(self.folder / "before_sft", regime, seed)
                    needs = (str(path.relative_to(self.folder)),)
                    arguments = (self.folder / "before_sft", regime, seed, self.pretraining_steps)
                    tasks.setdefault(needs[0], Task(run_before_sft, arguments))
                tasks[_sft_key(setting, seed)] = Task(run_sft_job, (self.sft_job(setting, seed),), needs)
        for setting, plan, variant, seed in self.cells():
            splits = ("validation", "test") if len(plan.variants) == 1 else ("validation",)
            needs = (_sft_key(setting, seed),)
            like = self._like(setting, plan, variant)
            if like is not None:
                needs = (*needs, _cell_key(setting, seed, like))
            job = self.job(setting, plan, variant, seed, splits)
            tasks[_cell_key(setting, seed, variant)] = Task(run_cell, (job,), needs)
        return tasks

    def test_tasks(self, failed: Set[Hashable]) -> dict[Hashable, Task]:
        """The chosen variants of tuned methods on the test prompts; none before every variant is trained.

        Args:
            failed: keys of training tasks that failed. A variant that is still to come may be the chosen one.
        """
        tasks: dict[Hashable, Task] = {}
        for setting in self.settings:
            for plan in setting.methods.values():
                variant = self.chosen(setting, plan)
                whole = failed.isdisjoint(_cell_key(setting, s, each) for s in self.seeds for each in plan.variants)
                if len(plan.variants) == 1 or variant is None or not whole:
                    continue
                for seed in self.seeds:
                    if self._is_trained(setting, seed, variant):
                        job = self.job(setting, plan, variant, seed, ("test",))
                        key: Hashable = (*_cell_key(setting, seed, variant), "test")
                        tasks[key] = Task(run_cell, (job,))
        return tasks

    def sft_job(self, setting: Setting, seed: int) -> SFTJob:
        """An SFT run, with all that its process has to know."""
        choose = self.flat or any(left_open(plan) for plan in setting.methods.values())
        arms = tuple((plan.method, each.arguments) for plan in setting.methods.values() for each in plan.variants)
        return SFTJob(self.sft(setting, seed), setting.others, arms, choose, capped=self.flat)

    def job(self, setting: Setting, plan: MethodPlan, variant: Variant, seed: int, splits: Sequence[str]) -> CellJob:
        """A cell, with all that its process has to know."""
        like = self._like(setting, plan, variant)
        folder = self.cell(setting, seed, variant)
        return CellJob(
            arm=plan.arm,
            method=plan.method,
            evaluation=self._evaluation(setting, variant, seed),
            folder=folder,
            arguments=self._seeded(variant.arguments, folder, seed, regime_of(variant.arguments.dataset_name)),
            others=variant.others,
            splits=tuple(splits),
            like=None if like is None else self.cell(setting, seed, like),
        )

    def _evaluation(self, setting: Setting, variant: Variant, seed: int) -> Evaluation:
        return Evaluation(self.sft(setting, seed), dataclasses.replace(variant.arguments, seed=seed), setting.name)

    def _seeded(self, arguments: RunArguments, folder: Path, seed: int, regime: Regime | None) -> RunArguments:
        changes: dict[str, Any] = {"seed": seed, "output_dir": str(folder)}
        if regime is not None:
            changes["model_name_or_path"] = str(before_sft_path(self.folder / "before_sft", regime, seed))
        return dataclasses.replace(arguments, **changes)

    def _like(self, setting: Setting, plan: MethodPlan, variant: Variant) -> Variant | None:
        """The cell whose FLOPs or seconds a variant matches: the only variant of the arm that it names."""
        name = matched_with(plan, variant)
        return None if name is None else setting.methods[name].variants[0]

    # -- results -----------------------------------------------------------------------------------------------

    def validation_values(self, setting: Setting, variant: Variant) -> dict[str, list[tuple[float, ...]]]:
        """Decoding -> the metric of the validation prompts, for each seed that has finished."""
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in self.seeds:
            if not self._is_trained(setting, seed, variant):
                continue
            evaluation = self._evaluation(setting, variant, seed)
            for temperature in evaluation.arguments.eval_temperatures:
                path = evaluation.path(self.cell(setting, seed, variant), "validation", temperature)
                if path.exists():
                    result = read_result(path)
                    if is_measured(result):
                        known = result.without(result.unjudged)
                        found.setdefault(decoding_name(temperature), []).append(verdicts(known))
        return found

    def chosen(self, setting: Setting, plan: MethodPlan) -> Variant | None:
        """The variant that did best on validation over all seeds, each at its best decoding; None before one is."""
        if len(plan.variants) == 1:
            return plan.variants[0]
        found = {variant.name: self.validation_values(setting, variant) for variant in plan.variants}
        whole = {name: {at: v for at, v in each.items() if len(v) == len(self.seeds)} for name, each in found.items()}
        best = best_variant(whole)
        return next((variant for variant in plan.variants if variant.name == best), None)

    def results(self) -> list[ArmResult]:
        """Validation and test results of the chosen variant of every arm."""
        found = []
        for setting in self.settings:
            for plan in setting.methods.values():
                variant = self.chosen(setting, plan)
                if variant is None:
                    continue
                for seed in self.seeds:
                    folder = self.cell(setting, seed, variant)
                    if self._is_trained(setting, seed, variant):
                        budget = RunFolder(folder, read_only=True).outcome("train").budget
                        results = self._evaluation(setting, variant, seed).results(folder, plan.arm)
                        found += [dataclasses.replace(result, budget=budget) for result in results]
        return found

    def sweeps(self) -> list[Sweep]:
        """Every variant of every tuned method, its mean on validation at its best decoding, and which was chosen."""
        found = []
        for setting in self.settings:
            for plan in (each for each in setting.methods.values() if len(each.variants) > 1):
                chosen = self.chosen(setting, plan)
                for variant in plan.variants:
                    values = self.validation_values(setting, variant)
                    best = best_decoding(values)
                    at = best[0] if best else decoding_name(variant.arguments.eval_temperatures[0])
                    found.append(
                        Sweep(
                            setting=setting.name,
                            method=plan.arm.label,
                            variant=variant.name.partition(",")[2],
                            decoding=at,
                            seeds=len(values.get(at, [])),
                            value=seed_mean(values[at]) if best else None,
                            chosen=variant is chosen,
                        )
                    )
        return found

    def _is_trained(self, setting: Setting, seed: int, variant: Variant) -> bool:
        """Whether a cell holds what this recipe trained."""
        refused = _cell_key(setting, seed, variant) in self.refused
        return not refused and RunFolder(self.cell(setting, seed, variant), read_only=True).is_done("train")


def _sft_key(setting: Setting, seed: int) -> Hashable:
    return setting.name, f"seed-{seed}"


def _cell_key(setting: Setting, seed: int, variant: Variant) -> tuple[str, str, str]:
    return setting.name, f"seed-{seed}", variant.name
