"""How well a judge agrees with labels: what `densepath judge-eval` writes."""

from __future__ import annotations

from dataclasses import dataclass

from densepath.records.brief import brief
from densepath.records.estimates import Verdict
from densepath.records.judged import JudgeNoise, PositionBias
from densepath.records.reward_eval import Figure, SetAside


@dataclass(frozen=True)
class JudgeEvaluation:
    """The whole evaluation.

    Attributes:
        judge: its name.
        rows: pairs with a verdict in each order that was asked.
        set_aside: rows that say nothing, and those that the judge said nothing of.
        invalid: judgements without a verdict.
        seed: of the draw and the bootstrap.
        interval: how intervals and verdicts are made.
        p: two-sided p-value of an accuracy of one half.
        verdict: of it: better than chance, worse, or a tie.
        headline: the accuracy in words; None where the judge was not shown to be better than chance, for then no
            figure that it gives elsewhere means anything.
        figures: `accuracy`, the judge beside the rules that prefer the longer or the shorter answer; and
            `prefers_longer`, the judge beside the labels, of pairs with two lengths.
        position: whether it goes by the place; None where pairs were judged in one order.
        noise: what its accuracy's error owes to its own chance; None where nothing was judged twice.
    """

    judge: str
    rows: int
    set_aside: tuple[SetAside, ...]
    invalid: int
    seed: int
    interval: str
    p: float
    verdict: Verdict
    headline: str | None
    figures: tuple[Figure, ...]
    position: PositionBias | None = None
    noise: JudgeNoise | None = None

    __repr__ = brief
