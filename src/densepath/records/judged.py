"""What judged answers come to: win rates, and the figures that AlpacaEval, Arena-Hard and MT-Bench publish.

Rates and scores are shares, from 0 to 1; the leaderboards print 100 times as much. Intervals are of 95 % over prompts
unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from densepath.records.brief import brief
from densepath.records.estimates import Comparison, Interval, Verdict

LEAN = 0.05
"""Distance of the mean preference for the first place from one half above which a reader is warned. Ours."""


@dataclass(frozen=True)
class PositionBias:
    """Whether the judge goes by the place in which an answer is shown.

    Attributes:
        follows_place: share of prompts at which the two orders prefer the same place, hence another answer.
        first_place: mean preference for the answer that is shown first; 1/2 for a judge without bias.
    """

    follows_place: Interval
    first_place: Interval

    @property
    def decides(self) -> bool:
        """Whether the place is shown to decide more often than not: what the judge says then makes no headline."""
        return self.follows_place.low > 0.5

    @property
    def leans(self) -> bool:
        """Whether one place is preferred so clearly that a reader is warned."""
        return abs(self.first_place.mean - 0.5) > LEAN


@dataclass(frozen=True)
class JudgeNoise:
    """What a win rate owes to the judge's own chance, and what to the prompts: standard errors of the rate.

    Attributes:
        repeats: judgements of each order.
        of_judge: were the prompts fixed and the judge asked again.
        of_prompts: were the judge without chance and other prompts drawn.
        total: both; its square is the sum of theirs.
    """

    repeats: int
    of_judge: float
    of_prompts: float
    total: float


@dataclass(frozen=True)
class WinRate:
    """One model's answers against a baseline's: repeats, turns and both orders are averaged for each prompt first.

    Attributes:
        model: whose answers win.
        baseline: what they are compared with.
        rate: mean preference for the model; a tie counts one half.
        wins: prompts at which the model is preferred.
        ties: prompts at which neither is; two orders that disagree are a tie.
        losses: prompts at which the baseline is preferred.
        p: two-sided p-value of a rate of one half.
        p_holm: the same after Holm's correction for all models that were judged together.
        verdict: of the corrected p-value, against one half.
        detectable: least distance from one half that as many such prompts show with a power of 80 %; 1/2 where they
            are too few to show any.
        length: of the model's answers less the baseline's, characters; None where lengths were not given.
        position: None where prompts were judged in one order.
        noise: None where nothing was judged twice.
        invalid: games without a verdict.
        dropped: prompts without a verdict in one of their orders, which count in no figure.
        categories: category of the prompts -> rate, where there are several, of at least ten prompts each.
    """

    model: str
    baseline: str
    rate: Interval
    wins: int
    ties: int
    losses: int
    p: float
    p_holm: float
    verdict: Verdict
    detectable: float
    length: Interval | None = None
    position: PositionBias | None = None
    noise: JudgeNoise | None = None
    invalid: int = 0
    dropped: int = 0
    categories: Mapping[str, Interval] = field(default_factory=dict)

    __repr__ = brief


@dataclass(frozen=True)
class RateComparison(Comparison):
    """The win rates of two models against one baseline, over the prompts of both.

    Attributes:
        baseline: its name.
    """

    baseline: str = ""


@dataclass(frozen=True)
class LengthControlled:
    """A win rate at equal lengths, predicted by a logistic fit.

    Attributes:
        name: `length_controlled`, AlpacaEval's own fit with the difficulty of each prompt and the gamed baselines; or
            `length_adjusted`, by length and model alone, which is another figure: off by 7.9 points on average over 15
            published models.
        rate: the mean prediction, with a bootstrap interval.
        published_error: what AlpacaEval publishes as its standard error: of the predictions over prompts, which is no
            sampling error.
        weights: feature -> weight.
        determined: whether the prompts determine it. They do not where length and model tell all wins from all
            losses: the rate is then that of the penalty, and its interval says nothing.
    """

    name: str
    rate: Interval
    published_error: float
    weights: Mapping[str, float]
    determined: bool = True


@dataclass(frozen=True)
class AlpacaEval:
    """The figures of AlpacaEval 2 for one model.

    Attributes:
        model: whose answers were judged.
        win_rate: mean preference for the model; prompts without a verdict do not count.
        standard_error: of that mean.
        discrete_win_rate: the same with each preference rounded to a win, a draw or a loss.
        n: prompts with a verdict.
        length: the rate at equal lengths; None where lengths were not given.
    """

    model: str
    win_rate: float
    standard_error: float
    discrete_win_rate: float
    n: int
    length: LengthControlled | None = None


@dataclass(frozen=True)
class StyleControlled:
    """Arena-Hard's score with style held fixed, by a logistic fit over all models of one baseline.

    Attributes:
        features: what is held fixed: `length`, `headers`, `lists`, `bold`.
        rate: at the mean style difference of the baseline's battles, where Arena-Hard puts its zero; None where the
            battles do not determine it: style or model tells all that were won from all that were lost.
        equal_style: where both answers have the same style; None likewise, or where the style never varies.
        weights: feature -> weight of one standard deviation; a feature without one that the battles determine is
            left out.
    """

    features: tuple[str, ...]
    rate: Interval | None
    equal_style: Interval | None
    weights: Mapping[str, float]


@dataclass(frozen=True)
class ArenaHard:
    """The figures of Arena-Hard for one model against one baseline.

    Attributes:
        model: whose answers were judged.
        baseline: what they were compared with.
        score: share of battles won; a strong verdict is three battles, a tie half a win.
        published_low: lower end of the interval that Arena-Hard publishes: of 90 %, over battles, hence too narrow.
        published_high: its upper end.
        bradley_terry: win rate by the strengths of all models of the baseline; the score in another form.
        dropped: prompts with a game without a verdict.
        styles: the score with style held fixed; empty where the answers were not given.
    """

    model: str
    baseline: str
    score: Interval
    published_low: float
    published_high: float
    bradley_terry: Interval
    dropped: int
    styles: tuple[StyleControlled, ...] = ()


@dataclass(frozen=True)
class MtBench:
    """Mean grades of one model, in the judge's own unit: 1 to 10.

    Attributes:
        model: whose answers were graded.
        mean: over all answers with a grade.
        turns: the same for each turn.
        categories: category -> mean.
        invalid: answers without a grade.
    """

    model: str
    mean: Interval
    turns: tuple[Interval, ...]
    categories: Mapping[str, Interval]
    invalid: int


@dataclass(frozen=True)
class AdjustedWinRate:
    """MT-Bench's pairwise form: a game is a question's turn, and two orders that do not say the same are a tie.

    Attributes:
        model: whose answers win.
        baseline: what they are compared with.
        rate: wins and half of the ties, by all games.
        wins: games that the model won in both orders.
        ties: games with a tie in one order, or another winner in each.
        losses: games that the baseline won in both orders.
        invalid: games without a verdict in one of the orders.
    """

    model: str
    baseline: str
    rate: Interval
    wins: int
    ties: int
    losses: int
    invalid: int


@dataclass(frozen=True)
class Kappa:
    """How far two raters agree beyond chance.

    Attributes:
        first: name of the one.
        second: name of the other, or "label".
        agreement: share of items that both say the same of.
        kappa: Cohen's; 1 is agreement, 0 what chance gives.
    """

    first: str
    second: str
    agreement: Interval
    kappa: Interval


@dataclass(frozen=True)
class Judged:
    """A benchmark's answers, judged.

    Attributes:
        benchmark: its name.
        table: which statistics it publishes: `win_rate`, `alpaca_eval`, `arena_hard` or `mt_bench`.
        judge: its name.
        prompts: questions of the benchmark.
        win_rates: of each model against its baseline; empty where answers were graded alone.
        comparisons: differences of win rates between models of one `baseline`, over the prompts of both.
        alpaca_eval: for each model; empty for other benchmarks.
        arena_hard: for each model and baseline; empty for other benchmarks.
        mt_bench: for each model; empty where answers were compared.
        mt_bench_pairs: MT-Bench's pairwise form, for each model; empty where answers were graded.
        kappas: agreement of this judge with others.
        notes: what a reader must know.
    """

    benchmark: str
    table: str
    judge: str
    prompts: int
    win_rates: tuple[WinRate, ...] = ()
    comparisons: tuple[RateComparison, ...] = ()
    alpaca_eval: tuple[AlpacaEval, ...] = ()
    arena_hard: tuple[ArenaHard, ...] = ()
    mt_bench: tuple[MtBench, ...] = ()
    mt_bench_pairs: tuple[AdjustedWinRate, ...] = ()
    kappas: tuple[Kappa, ...] = ()
    notes: tuple[str, ...] = ()

    __repr__ = brief
