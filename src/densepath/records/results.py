"""What an experiment, or a run, found out: `results.json`, from which its tables and pages are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from densepath.records.arm import Arm
from densepath.records.brief import brief
from densepath.records.estimates import Interval, Verdict
from densepath.records.judged import PositionBias


@dataclass(frozen=True)
class ArmRow:
    """One arm at one decoding, its figures on test.

    Attributes:
        method: the arm's name.
        label: as shown to a reader.
        control: whether a method under test has to beat it.
        decoding: "greedy", "temperature 1".
        chosen: whether this is the arm's decoding with the highest mean on validation.
        status: "complete"; "incomplete": a seed failed, and the means are of the others; "missing"; "validation only":
            not evaluated on test.
        seeds: that were evaluated on test.
        missing_seeds: that were expected and are not there.
        value: the metric, mean over seeds; None where there is none.
        validation: the same on the validation prompts, which choose.
        by_seed: each seed's own mean.
        length: tokens of a completion, EOS included.
        length_ratio: times SFT's at the same decoding.
        length_flag: whether they are more than 30 % apart: a difference may be one of length.
        truncated: share of completions without EOS within the budget.
        kl: KL to SFT, nats per completion; above about 1.5 most runs have collapsed.
        reward: dense reward, nats per completion.
        entropy: nats per token, mean over completions of each one's mean.
        nll: of held-out demonstrations, nats per token.
        budget: each of a budget's fields for the training beyond SFT, means over seeds.
    """

    method: str
    label: str
    control: bool
    decoding: str
    chosen: bool
    status: str
    seeds: tuple[int, ...]
    missing_seeds: tuple[int, ...]
    value: Interval | None
    validation: Interval | None
    by_seed: Mapping[str, float]
    length: float | None
    length_ratio: float | None
    length_flag: bool
    truncated: float | None
    kl: float | None
    reward: float | None
    entropy: float | None
    nll: float | None
    budget: Mapping[str, float | None]

    __repr__ = brief


@dataclass(frozen=True)
class ArmComparison:
    """An arm against another, on the test prompts.

    Attributes:
        method: under comparison.
        decoding: of the method.
        against: what it is compared with.
        against_decoding: of that.
        role: "sft"; "best control", the control with the highest mean on validation (for a control: of the others);
            "equal compute", the control that was trained for the FLOPs or seconds of the method; or "trained on
            validation", a control that validation cannot rank, since it was trained on those prompts.
        own_decoding: each is at the decoding that did best on validation; else both at the same one.
        primary: a method under test at its own decoding: the main question.
        difference: of the metric, `method` less `against`, paired seed by seed; None where no seed has both.
        p: of the paired t-test over seeds, or over prompts of the sign-flip test; None where it is incomplete.
        p_holm: after correction for all comparisons of the setting. The chance of any false verdict is below 5 %: half
            of it for the primary ones, half for all others, with Holm's correction in each half.
        verdict: better or worse where `p_holm` is below 5 %, else tie: no difference was shown. "incomplete": a seed
            is missing, and those that are there may be the lucky ones; it still counts in the correction.
        missing_seeds: that either side lacks on test.
        length_difference: tokens per completion.
        length_ratio: times as long.
        length_flag: whether the lengths are more than 30 % apart.
        label: of the method.
        against_label: of what it is compared with.
    """

    method: str
    decoding: str
    against: str
    against_decoding: str
    role: str
    own_decoding: bool
    primary: bool
    difference: Interval | None
    p: float | None
    p_holm: float | None
    verdict: Verdict
    missing_seeds: tuple[int, ...]
    length_difference: Interval | None
    length_ratio: float | None
    length_flag: bool
    label: str
    against_label: str

    __repr__ = brief


@dataclass(frozen=True)
class BestControl:
    """The control that did best on validation, all at one decoding or each at its own.

    Attributes:
        own_decoding: each at its own.
        decoding: of the control.
        method: its name; None where none is complete.
        label: as shown to a reader.
        validation: its mean there.
    """

    own_decoding: bool
    decoding: str | None
    method: str | None
    label: str | None
    validation: float | None


@dataclass(frozen=True)
class Statement:
    """The comparisons of a method at a decoding, in words.

    Attributes:
        method: its name.
        own_decoding: whether it is the one that validation chose.
        decoding: of the method.
        text: one sentence or a few.
    """

    method: str
    own_decoding: bool
    decoding: str
    text: str


@dataclass(frozen=True)
class SettingResults:
    """All of one setting.

    Attributes:
        name: of the setting.
        seeds: of any arm, and those that were expected.
        prompts: of either split; None where there are none.
        decodings: the highest temperature first, greedy last.
        warnings: what a reader has to know first.
        rows: one for each arm and decoding.
        best_controls: across own decodings, then for each decoding.
        comparisons: against SFT, the best control, the one at equal compute, and those trained on validation.
        compared: how many distinct comparisons each half of the correction is over.
        statements: the comparisons in words; none where the judge is shown to go by the place (`position.decides`).
        position: how far the judge goes by the place in which an answer is shown, over all pairs of the test table;
            None without a judge that was shown both orders.
    """

    name: str
    seeds: tuple[int, ...]
    prompts: Mapping[str, int | None]
    decodings: tuple[str, ...]
    warnings: tuple[str, ...]
    rows: tuple[ArmRow, ...]
    best_controls: tuple[BestControl, ...]
    comparisons: tuple[ArmComparison, ...]
    compared: Mapping[str, int]
    statements: tuple[Statement, ...]
    position: PositionBias | None = None

    __repr__ = brief


@dataclass(frozen=True)
class Sweep:
    """One variant of a tuned method, and how validation found it.

    Attributes:
        setting: its name.
        method: as shown to a reader.
        variant: the tuned keys and their values.
        decoding: at which it did best on validation.
        seeds: that have finished.
        value: mean on validation; None where no seed has finished.
        chosen: whether it is the one that goes on to the test prompts.
    """

    setting: str
    method: str
    variant: str
    decoding: str
    seeds: int
    value: Interval | None
    chosen: bool


@dataclass(frozen=True)
class Results:
    """What was found out.

    Attributes:
        metric: name of what the verifier or the judge says, higher is better; of several, each with its settings. None
            where nothing checked the answers. Then nothing is compared: the likelihood of held-out demonstrations is a
            health check, no verdict.
        interval: how intervals and verdicts are made.
        made_by: version of densepath.
        info: what made it: command, commit, date, versions.
        methods: the arms.
        settings: in the order of the recipe.
        sweeps: every variant of every tuned method.
    """

    metric: str | None
    interval: str
    made_by: str
    info: Mapping[str, Any]
    methods: tuple[Arm, ...]
    settings: tuple[SettingResults, ...]
    sweeps: tuple[Sweep, ...] = ()

    __repr__ = brief
