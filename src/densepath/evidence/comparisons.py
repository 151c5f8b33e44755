"""Every method against SFT and its controls, with one correction for all comparisons of a setting."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from densepath.evidence.cells import Place, SettingCells
from densepath.records.arm import SFT
from densepath.records.estimates import Difference, Interval, Verdict, verdict_of
from densepath.records.results import ArmComparison
from densepath.stats.comparisons import holm

EQUAL_COMPUTE, SEES_VALIDATION = "equal compute", "trained on validation"
"""The roles of a control that has the compute of the method that it is compared with, and of one that no validation
can rank, since it was trained on those prompts: a method under test is compared with it whatever it has there."""
LENGTH_SHARE = 0.3
"""Lengths that differ by more than this share are flagged: a difference may then be one of length. Ours."""


@dataclass(frozen=True)
class _Question:
    """Which comparison stands where; several may ask for the same pair, which is then tested once."""

    place: Place
    other: Place
    role: str
    own: bool
    primary: bool

    @property
    def pair(self) -> tuple[Place, Place]:
        return self.place, self.other


def setting_comparisons(cells: SettingCells) -> list[ArmComparison]:
    """All comparisons of a setting: at each one's own decoding first, then at each decoding that a method has.

    The chance of any false verdict in the setting is held below 5 %: half of it goes to the primary comparisons, half
    to all others, with Holm's correction in each half. A pair that is asked for twice (where SFT is the best control)
    is one comparison, and one that is incomplete still counts.
    """
    questions = list(_questions(cells))
    primary = {question.pair: False for question in questions}
    for question in questions:
        primary[question.pair] |= question.primary
    found = {pair: cells.difference(*pair) for pair in primary}
    missing = {pair: sorted({seed for place in pair for seed in cells.missing(place, "test")}) for pair in primary}
    ps = {pair: 1.0 if each is None or missing[pair] else each[0].p for pair, each in found.items()}
    adjusted = _corrected({pair: 1.0 if p is None else p for pair, p in ps.items()}, primary)
    return [_comparison(cells, question, found, missing, adjusted) for question in questions]


def family_sizes(comparisons: Sequence[ArmComparison]) -> dict[str, int]:
    """How many distinct comparisons each half of the correction is over."""
    primary: set[tuple[str, ...]] = set()
    other: set[tuple[str, ...]] = set()
    for one in comparisons:
        pair = (one.method, one.decoding, one.against, one.against_decoding)
        (primary if one.primary else other).add(pair)
    return {"primary": len(primary), "other": len(other - primary)}


def _questions(cells: SettingCells) -> Iterator[_Question]:
    for decoding in [None, *cells.decodings]:
        for info in cells.methods:
            if info.name == SFT:
                continue
            place = cells.own_place(info.name) if decoding is None else Place(info.name, decoding)
            own = decoding is None
            if place is None or (not own and not cells.of(place, "test")):
                continue
            sft = cells.own_place(SFT) if own else Place(SFT, place.decoding)
            others = [("sft", sft), ("best control", cells.best_control(info.name, decoding))]
            if own:
                others.append((EQUAL_COMPUTE, cells.matched_control(info.name)))
            if own and not info.control:
                others += [(SEES_VALIDATION, each) for each in cells.trained_on_validation()]
            for role, other in others:
                if other is not None:
                    yield _Question(place, other, role, own, primary=own and not info.control)


def _corrected(
    ps: dict[tuple[Place, Place], float], primary: dict[tuple[Place, Place], bool]
) -> dict[tuple[Place, Place], float]:
    """Holm's correction in each half of the error; a half without comparisons leaves all of it to the other."""
    halves = [[pair for pair in ps if primary[pair] is half] for half in (True, False)]
    times = sum(bool(half) for half in halves)
    adjusted = {}
    for half in halves:
        for pair, p in zip(half, holm([ps[pair] for pair in half]), strict=True):
            adjusted[pair] = min(1.0, times * p)
    return adjusted


def _comparison(
    cells: SettingCells,
    question: _Question,
    found: dict[tuple[Place, Place], tuple[Difference, Interval, float] | None],
    missing: dict[tuple[Place, Place], list[int]],
    adjusted: dict[tuple[Place, Place], float],
) -> ArmComparison:
    pair = question.pair
    metric, length, ratio = found[pair] or (None, None, None)
    whole = metric if metric is not None and not missing[pair] else None
    p_holm = adjusted[pair] if whole else None
    return ArmComparison(
        method=question.place.method,
        decoding=question.place.decoding,
        against=question.other.method,
        against_decoding=question.other.decoding,
        role=question.role,
        own_decoding=question.own,
        primary=question.primary,
        difference=metric.interval if metric else None,
        p=whole.p if whole else None,
        p_holm=p_holm,
        verdict=Verdict.INCOMPLETE if whole is None else verdict_of(adjusted[pair], whole.interval.mean),
        missing_seeds=tuple(missing[pair]),
        length_difference=length,
        length_ratio=ratio,
        length_flag=differs(ratio),
        label=cells.info(question.place.method).label,
        against_label=cells.info(question.other.method).label,
    )


def differs(ratio: float | None) -> bool:
    """Whether a ratio of lengths is to be flagged."""
    return ratio is not None and not 1 - LENGTH_SHARE <= ratio <= 1 + LENGTH_SHARE
