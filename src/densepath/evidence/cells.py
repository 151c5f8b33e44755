"""The cells of one setting, checked against each other and looked up by method, decoding and split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from densepath.choice.arms import best_decoding
from densepath.errors import DataError
from densepath.records.arm import SFT, SPLITS, Arm, ArmResult
from densepath.records.estimates import Difference, Interval
from densepath.records.judged import PositionBias
from densepath.stats.intervals import mean_interval
from densepath.stats.seeds import seed_difference, seed_mean
from densepath.stats.win_rate import position_bias


class Place(NamedTuple):
    """A method at a decoding."""

    method: str
    decoding: str


class SettingCells:
    """Every cell of one setting.

    Attributes:
        methods: SFT first, the others in the order given.
        seeds: of any cell, and those that are expected; a method lacking one is incomplete.
        decodings: of any cell: the highest temperature first, greedy last.
        unjudged: split -> prompts that were left out, over all seeds.

    Args:
        setting: its name.
        results: the cells, in any order; those of other settings are left out.
        methods: all of them.
        seeds: that were asked for, where it is known.

    Raises:
        DataError: a cell twice, a method without a `Arm`, or other prompts than the cells beside it.
    """

    def __init__(
        self, setting: str, results: Iterable[ArmResult], methods: Sequence[Arm], seeds: Iterable[int] = ()
    ) -> None:
        self.setting = setting
        self.methods = sorted(methods, key=lambda method: method.name != SFT)
        self._cells: dict[tuple[Place, str], dict[int, ArmResult]] = {}
        known = {method.name for method in methods}
        for cell in results:
            if cell.setting != setting:
                continue
            if cell.arm.name not in known:
                raise DataError(f"{cell}: no method of that name is described; give its Arm")
            found = self._cells.setdefault((Place(cell.arm.name, cell.decoding), cell.split), {})
            if cell.seed in found:
                raise DataError(f"{cell}: there twice; keep one")
            found[cell.seed] = cell
        self.unjudged = self._leave_out()
        self.seeds = sorted({*seeds, *(seed for found in self._cells.values() for seed in found)})
        self.decodings = sorted({place.decoding for place, _ in self._cells}, key=_decoding_order)
        self._check_prompts()

    def _check_prompts(self) -> None:
        first: dict[tuple[int, str], ArmResult] = {}
        for (_, split), found in self._cells.items():
            for seed, cell in ((seed, cell) for seed, cell in found.items() if is_measured(cell)):
                other = first.setdefault((seed, split), cell)
                if len(verdicts(cell)) != len(verdicts(other)):
                    raise DataError(
                        f"{cell}: {len(verdicts(cell))} prompts, but {len(verdicts(other))} in {other}; "
                        "evaluate every method on the same prompts"
                    )

    def _leave_out(self) -> dict[str, int]:
        """Leave out, for every method, the prompts of which the judge could say nothing for one; split -> how many."""
        places: dict[tuple[int, str], set[int]] = {}
        for (_, split), found in self._cells.items():
            for seed, cell in found.items():
                places.setdefault((seed, split), set()).update(cell.unjudged)
        for (place, split), found in self._cells.items():
            self._cells[place, split] = {seed: cell.without(places[seed, split]) for seed, cell in found.items()}
        return {split: sum(len(gone) for (_, each), gone in places.items() if each == split) for split in SPLITS}

    def info(self, method: str) -> Arm:
        """The description of a method."""
        return next(info for info in self.methods if info.name == method)

    def of(self, place: Place, split: str) -> dict[int, ArmResult]:
        """Seed -> cell, by seed; empty where nothing was evaluated."""
        return dict(sorted(self._cells.get((place, split), {}).items()))

    def of_method(self, method: str) -> list[ArmResult]:
        """Every cell of a method."""
        return [cell for (place, _), found in self._cells.items() if place.method == method for cell in found.values()]

    def missing(self, place: Place, split: str) -> list[int]:
        """Seeds without a cell there."""
        return [seed for seed in self.seeds if seed not in self._cells.get((place, split), {})]

    def complete(self, place: Place, split: str) -> bool:
        """Whether every seed has its cell."""
        return bool(self.seeds) and not self.missing(place, split)

    def mean(self, place: Place, split: str) -> Interval | None:
        """The metric over the seeds that are there; None where there are none, or nothing says how good they are."""
        found = self.of(place, split)
        measured = found and all(map(is_measured, found.values()))
        return seed_mean([verdicts(cell) for cell in found.values()]) if measured else None

    def validation_score(self, place: Place) -> float | None:
        """Mean on validation over all seeds; None where one is missing, since a mean of the others would be kind."""
        if not self._scored(place):
            return None
        return float(np.mean([np.mean(verdicts(cell)) for cell in self.of(place, "validation").values()]))

    def chosen_decoding(self, method: str) -> str | None:
        """The decoding with the highest mean on validation, the first of equal ones; None where none is complete.

        A method that was trained on the validation prompts has SFT's.
        """
        if self.info(method).sees_validation:
            method = SFT
        places = [Place(method, decoding) for decoding in self.decodings]
        found = best_decoding(
            {
                place.decoding: [verdicts(cell) for cell in self.of(place, "validation").values()]
                for place in places
                if self._scored(place)
            }
        )
        return None if found is None else found[0]

    def _scored(self, place: Place) -> bool:
        """Whether every seed has its validation results, and something says how good they are."""
        return self.complete(place, "validation") and all(map(is_measured, self.of(place, "validation").values()))

    def position(self) -> PositionBias | None:
        """How far the judge goes by the place, over all pairs of the test; None where it was not shown both orders.

        A prompt is one unit, whatever methods, decodings and seeds answered it.
        """
        found = [
            (prompt, pair)
            for (_, split), cells in self._cells.items()
            for cell in cells.values()
            for prompt, pair in enumerate(cell.by_order or ())
            if split == "test" and pair is not None
        ]
        if not found:
            return None
        prompts, orders = zip(*found, strict=True)
        return position_bias(np.array(orders), np.array(prompts))

    def own_place(self, method: str) -> Place | None:
        """The method at its chosen decoding."""
        decoding = self.chosen_decoding(method)
        return None if decoding is None else Place(method, decoding)

    def matched_control(self, method: str) -> Place | None:
        """The control that was trained for the compute of a method, at its own decoding; None without one."""
        found = (info.name for info in self.methods if info.control and info.matches == method)
        name = next(found, None)
        return None if name is None else self.own_place(name)

    def trained_on_validation(self) -> list[Place]:
        """The controls that no validation can rank, each at SFT's own decoding."""
        places = (self.own_place(info.name) for info in self.methods if info.control and info.sees_validation)
        return [place for place in places if place is not None and self.of(place, "test")]

    def best_control(self, but: str, decoding: str | None) -> Place | None:
        """The control, `but` excluded, with the highest mean on validation; test values play no part.

        None that was trained on the validation prompts: its mean there would make it the best wherever it is not.

        Args:
            but: a method that is not compared with itself.
            decoding: which all use; None: each its own.
        """
        named = (method for method in self.methods if method.control and not method.sees_validation)
        names = [method.name for method in named if method.name != but]
        places = [self.own_place(name) if decoding is None else Place(name, decoding) for name in names]
        scores = {place: self.validation_score(place) for place in places if place is not None}
        known = {place: score for place, score in scores.items() if score is not None}
        return max(known, key=lambda place: known[place]) if known else None

    def difference(self, place: Place, other: Place) -> tuple[Difference, Interval, float] | None:
        """On test, over the seeds that both have: of the metric, of the length in tokens, and the ratio of lengths."""
        mine, theirs = self.of(place, "test"), self.of(other, "test")
        seeds = [seed for seed in mine if seed in theirs]
        if not seeds:
            return None
        lengths = [np.subtract(prompt_lengths(mine[seed]), prompt_lengths(theirs[seed])) for seed in seeds]
        ratio = length_ratio(mean_length(mine[seed] for seed in seeds), mean_length(theirs[seed] for seed in seeds))
        return (
            seed_difference([verdicts(mine[seed]) for seed in seeds], [verdicts(theirs[seed]) for seed in seeds]),
            seed_mean(lengths, mean_interval),
            ratio,
        )


def is_measured(cell: ArmResult) -> bool:
    """Whether anything says how good it is: a decoder has no likelihood where nothing checks answers."""
    return cell.values is not None or cell.nll is not None


def verdicts(cell: ArmResult) -> tuple[float, ...]:
    """The metric of each prompt; where nothing checks, the log-likelihood of each held-out demonstration.

    Raises:
        DataError: there is neither.
    """
    if cell.values is not None:
        return cell.values
    if cell.nll is None:
        raise DataError(f"{cell}: no metric; give a verifier, or held-out rows with a completion")
    return tuple(-value for value in cell.nll)


def prompt_lengths(cell: ArmResult) -> NDArray[np.float64]:
    """Tokens for each prompt, the mean over its completions."""
    means: NDArray[np.float64] = np.reshape(cell.lengths, (len(cell.values or cell.lengths), -1)).mean(axis=1)
    return means


def mean_length(cells: Iterable[ArmResult]) -> float:
    """Tokens per completion: the mean over seeds of each seed's mean."""
    return float(np.mean([np.mean(cell.lengths) for cell in cells]))


def length_ratio(length: float, other: float) -> float:
    """How many times as long; 1 where both are empty."""
    return length / other if other else 1.0 if length == other else float(length)


def _decoding_order(decoding: str) -> tuple[int, float, str]:
    match = re.fullmatch(r"temperature ([0-9.]+)", decoding)
    return (0, -float(match[1]), "") if match else (int(decoding != "greedy") + 1, 0.0, decoding)
