"""The decision of a diagnosis on written-down figures, one test for each way that it can end."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest

from densepath.choice.compare import arm_findings
from densepath.choice.decide import decide
from densepath.choice.training import train_on
from densepath.records.arm import Arm, ArmResult
from densepath.records.choice import (
    Agreement,
    Answer,
    Answers,
    Criterion,
    Findings,
    Likelihood,
    RewardFigures,
    Spread,
)
from densepath.records.estimates import Comparison, Interval, Verdict
from densepath.stats.intervals import proportion_interval

N = 200
BETTER, WORSE, TIE = Verdict.BETTER, Verdict.WORSE, Verdict.TIE


def about(mean, half=0.05, n=N):
    return Interval(mean, mean - half, mean + half, n)


def first_right(value):
    """(N,) verdicts of which the first are right."""
    return () if value is None else (1.0,) * round(value * N) + (0.0,) * (N - round(value * N))


def answers(value, temperature, *, reference=None, alpha=0.0, length=6.0, truncated=0.0, longer=0.0, **leads):
    return Answers(
        reference, alpha, temperature, None if value is None else about(value), about(length), truncated,
        longer=None if reference is None else about(longer, 0.01), verdicts=first_right(value), **leads,
    )  # fmt: skip


def preview(reference, sampled, greedy, *, alpha=1.0, best, same, verdicts=(TIE, TIE, TIE, TIE), **given):
    """Both decodings of one preview; `verdicts`: sampled against the best and the same, then greedy likewise."""

    def lead(value, other, verdict):
        return Comparison("preview", "SFT", about(value - other), 0.01, 0.02, verdict)

    return tuple(
        answers(
            value, temperature, reference=reference, alpha=alpha, **given,
            against_best=lead(value, best, of_best), against_same=lead(value, other, of_same),
        )
        for value, temperature, other, of_best, of_same in (
            (sampled, 1.0, same[0], *verdicts[:2]), (greedy, 0.0, same[1], *verdicts[2:]),
        )
    )  # fmt: skip


def reward(name, *, mean=0.02, sd=0.5, related=0.0, verifier=None, preference=None, lead=0.3, verdict=BETTER):
    ahead = Comparison(name, "sft_logprob", about(lead), 0.01, 0.02, verdict) if preference else None
    spreads = Spread(mean, sd, 0.4), Spread(6 * mean, 2 * sd, 0.4)
    return RewardFigures(name, *spreads, related, verifier, preference, ahead)


def findings(sft, previews, rewards=None, *, verifier="exact_match", likelihoods=(), preferences=0):
    sft = tuple(answers(value, temperature) for value, temperature in zip(sft, (1.0, 0.5, 0.0), strict=True))
    rewards = rewards or tuple(reward(name) for name in dict.fromkeys(p.reference for p in previews))
    criterion = Criterion.ANSWERS if verifier else Criterion.PREFERENCE if preferences else None
    return Findings(
        N, verifier, preferences, sft, tuple(previews), tuple(rewards), tuple(likelihoods), criterion=criterion,
        betas=(1.0, 0.5),
    )  # fmt: skip


HABIT = {"best": 0.36, "same": (0.36, 0.28)}


def test_a_preview_that_beats_sft_at_its_best_is_advised_and_the_harmful_reference_named():
    """The real model of the evidence: the model before SFT .55, half-way .14, SFT .36 greedy."""
    sft = {"best": 0.36, "same": (0.27, 0.36)}
    found = decide(
        findings(
            (0.27, 0.34, 0.36),
            [
                *preview("0", 0.32, 0.47, alpha=1.0, verdicts=(TIE, TIE, BETTER, BETTER), **sft),
                *preview("0", 0.33, 0.55, alpha=2.0, verdicts=(TIE, TIE, BETTER, BETTER), **sft),
                *preview("0.5", 0.13, 0.14, alpha=1.0, verdicts=(WORSE,) * 4, **sft),
            ],
            [reward("0", verifier=about(0.8)), reward("0.5", verifier=about(0.4))],
        )
    )
    assert (found.answer, found.reference, found.beta) == (Answer.CANDIDATE, "0", 0.5)
    first, agreement, harm = found.reasons
    assert "reference 0 at beta 0.5 (greedy)" in first
    assert "0.550 of 200 validation prompts; SFT at its best (greedy) on 0.360: +0.190 [+0.140, +0.240]" in first
    assert "after correction for 6 candidates" in first
    assert "by reference: 0: 0.80 [0.75, 0.85]." in agreement  # of the advised one alone
    assert harm.startswith("Reference 0.5 does harm: at beta 1 (greedy) its preview is right on 0.140")
    assert "-0.220 [-0.270, -0.170] against SFT" in harm
    assert found.warnings == ()


def test_sharpening_is_told_from_improvement():
    """`scratch`: .35 -> .54 at temperature 1, and .69 -> .65 greedily."""
    sft = {"best": 0.69, "same": (0.35, 0.69)}
    found = decide(findings((0.35, 0.62, 0.69), preview("0", 0.54, 0.65, verdicts=(WORSE, BETTER, TIE, TIE), **sft)))
    assert found.answer is Answer.NONE
    assert (found.reference, found.beta) == (None, None)
    assert found.reasons[0].startswith("No candidate is shown to beat SFT at its best (greedy: 0.690 on 200")
    assert "It is sharpening, not improvement: at temperature 1" in found.reasons[1]
    assert "right on 0.540 and SFT on 0.350, but SFT has 0.690 with greedy decoding" in found.reasons[1]


def test_a_collapse_is_do_not():
    sft = {"best": 0.34, "same": (0.34, 0.30)}
    found = decide(findings((0.34, 0.33, 0.3), preview("0", 0.05, 0.0, verdicts=(WORSE,) * 4, **sft)))
    assert found.answer is Answer.NONE
    assert "Reference 0 does harm" in " ".join(found.reasons)


def test_a_lead_that_too_few_prompts_cannot_show_is_not_a_no():
    sft = {"best": 0.36, "same": (0.36, 0.28)}
    found = decide(findings((0.36, 0.35, 0.28), preview("0", 0.37, 0.42, **sft)))
    assert found.answer is Answer.CANNOT_TELL
    assert "A lead of +0.060 would be worth having" in found.reasons[0]
    # half width .05 is 1.96 standard errors of .0255; three of them are .0765 = 1.2755 leads: 200 * 1.2755^2 = 325.4
    assert "give about 330 of them" in found.reasons[0]
    small = decide(findings((0.36, 0.35, 0.28), preview("0", 0.37, 0.4, **sft)))
    assert small.answer is Answer.NONE


@pytest.mark.parametrize(
    ("values", "candidates", "p", "needed"),
    [((1.0,) * 3, 1, 0.25, 6), ((1.0,) * 3, 2, 0.25, 7), ((1.0, 0.0), 1, 1.0, 12), ((1.0, 0.0), 2, 1.0, 14)],
)
def test_a_lead_of_few_prompts_asks_for_as_many_as_the_sign_flip_test_needs(values, candidates, p, needed):
    """Of k differences of one sign p = 2^(1 - k): below .05 for 6, below .025 for 7; twice that where half differ."""

    def result(name, values):
        lengths = (2,) * len(values)
        return ArmResult(Arm(name, name, name == "sft"), "s", 0, "greedy", "validation", values, lengths, 0.0)

    tried = [result(f"candidate {number}", values) for number in range(candidates)]
    found = decide(arm_findings([result("sft", (0.0,) * len(values))], tried, verifier="exact_match"))
    assert (found.answer, found.p) == (Answer.CANNOT_TELL, p)
    assert f"give about {needed} of them" in found.reasons[0]


@pytest.mark.parametrize(("value", "word"), [(0.0, "wrong"), (1.0, "right")])
def test_a_verifier_that_tells_nothing_apart(value, word):
    sft = {"best": value, "same": (value, value)}
    found = decide(findings((value,) * 3, preview("0", value, value, **sft)))
    assert found.answer is Answer.CANNOT_TELL
    assert f"found every answer {word}" in found.reasons[0]


def test_a_reward_of_zero_is_do_not_whatever_else_is_given():
    sft = {"best": 0.3, "same": (0.3, 0.3)}
    previews = preview("1", 0.3, 0.3, **sft)
    for verifier in ("exact_match", None):
        found = decide(findings((0.3,) * 3, previews, [reward("1", mean=0.0, sd=0.0)], verifier=verifier))
        assert found.answer is Answer.NONE
        assert found.reasons[0].startswith("The reward is zero")


def unjudged(*rewards, **given):
    previews = [
        answers(None, t, reference=r.reference, alpha=a, longer=0.0)
        for r in rewards
        for a in (1.0, 2.0)
        for t in (1.0, 0.0)
    ]
    return decide(findings((None,) * 3, previews, rewards, verifier=None, **given))


def test_without_ground_truth_it_cannot_be_told():
    found = unjudged(reward("0", mean=1.0), reward("0.5"))
    assert found.answer is Answer.CANNOT_TELL
    assert "give a verifier, or preference pairs" in found.reasons[0]
    assert "up to +6.00 nats per completion" in found.reasons[0]
    assert "no evidence" in found.reasons[0]


def test_preferences_alone_advise_with_a_plain_warning():
    found = unjudged(reward("0", preference=about(0.8)), reward("0.5", preference=about(0.4)), preferences=90)
    assert (found.answer, found.reference, found.beta) == (Answer.CANDIDATE, "0", 1.0)  # the mildest
    assert "on 90 preference pairs, chance 0.5, by reference: 0: 0.80 [0.75, 0.85]; 0.5: 0.40" in found.reasons[1]
    assert found.warnings[0].startswith("No preview could be judged")


def test_preferences_that_sft_knows_already_are_sharpening():
    """`scratch` against random weights: the reward is log pi_SFT but for a constant."""
    found = unjudged(reward("0", preference=about(0.97), lead=0.0, verdict=TIE), preferences=90)
    assert found.answer is Answer.NONE
    assert "less that of log pi_SFT alone: +0.000 [-0.050, +0.050]. It asks for what SFT prefers" in found.reasons[0]
    unsure = unjudged(reward("0", preference=about(0.97), lead=0.06, verdict=TIE), preferences=90)
    assert unsure.answer is Answer.CANNOT_TELL
    assert "90 pairs do not show to be a lead" in unsure.reasons[0]


def test_preferences_against_every_reference():
    found = unjudged(reward("0", preference=about(0.4)), reward("0.5", preference=about(0.3)), preferences=90)
    assert found.answer is Answer.NONE
    assert "prefers the rejected answers" in found.reasons[0]


def test_preferences_that_show_nothing():
    found = unjudged(reward("0", preference=about(0.52)), reward("0.5", preference=about(0.4)), preferences=90)
    assert found.answer is Answer.CANNOT_TELL
    # .555 [.505, .605] is above .5 for one reference, and not for the best of five
    lucky = about(0.555)
    assert unjudged(reward("0", preference=lucky), preferences=90).answer is Answer.CANDIDATE
    several = [reward(f"{name}", preference=lucky) for name in range(5)]
    assert unjudged(*several, preferences=90).answer is Answer.CANNOT_TELL
    for right in (0, 3):  # of three pairs: [0, .56] and [.44, 1]
        few = unjudged(reward("0", preference=proportion_interval(right, 3)), preferences=3)
        assert few.answer is Answer.CANNOT_TELL
    # Six of six is above .5 for one reference, and not for the best of five: 6 / (6 + 2.576^2) is .475.
    whole = [reward(f"{name}", preference=proportion_interval(6, 6)) for name in range(5)]
    assert unjudged(whole[0], preferences=6).answer is Answer.CANDIDATE
    assert unjudged(*whole, preferences=6).answer is Answer.CANNOT_TELL


@pytest.mark.parametrize(
    ("criterion", "value", "low", "answer", "named"),
    [
        (Criterion.PREFERENCE, proportion_interval(3, 3), 0.65, Answer.CANNOT_TELL, None),
        (Criterion.PREFERENCE, proportion_interval(0, 3), 0.0, Answer.CANNOT_TELL, None),
        (Criterion.PREFERENCE, proportion_interval(26, 50), 0.43, Answer.CANNOT_TELL, None),
        (Criterion.PREFERENCE, proportion_interval(8, 8), 0.83, Answer.CANNOT_TELL, "0"),
        (Criterion.PREFERENCE, proportion_interval(0, 8), 0.0, Answer.NONE, None),
        (Criterion.ALTERED, about(0.02), -0.01, Answer.NONE, None),
    ],
)
def test_by_the_reward_alone(criterion, value, low, answer, named):
    """Nothing was sampled. Pairs that do not show anything forbid nothing."""
    found = Findings(0, None, value.n, (), (), agreement=(Agreement("0", criterion, value, low),), criterion=criterion)
    decision = decide(found)
    assert (decision.answer, decision.reference) == (answer, named)


@pytest.mark.parametrize(("n", "told"), [(3, False), (4, False), (5, True)])
def test_fewer_than_five_units_name_and_forbid_nothing(n, told):
    """Pairs with samples and without, and answers, of which a lead worth having names its candidate all the same."""

    def check(found, answer, reference=None):
        expected = (answer, reference) if told else (Answer.CANNOT_TELL, None)
        assert (found.answer, found.reference) == expected

    for right, sampled, alone in ((n, Answer.CANDIDATE, Answer.CANNOT_TELL), (0, Answer.NONE, Answer.NONE)):
        value = proportion_interval(right, n)
        named = "0" if right else None
        check(unjudged(reward("0", preference=value), preferences=n), sampled, named)
        agreement = (Agreement("0", Criterion.PREFERENCE, value, value.low),)
        check(decide(Findings(0, None, n, (), (), agreement=agreement, criterion=Criterion.PREFERENCE)), alone, named)
    given = findings((0.36, 0.35, 0.28), preview("0", 0.36, 0.28, **HABIT))
    check(decide(dataclasses.replace(given, prompts=n)), Answer.NONE)


# -- warnings ----------------------------------------------------------------------------------------------------


def nll(value, reference=None, alpha=None, change=None):
    return Likelihood(reference, alpha, about(value), None if change is None else about(change, 0.005))


def ended(change, half=0.005, first=2.4, last="0.75"):
    """Likelihoods of a run whose last stretch lowered the NLL by `change`; with a preview, and with no fraction."""
    return [
        nll(0.6175), nll(3.0, "0", None, first), nll(0.8, "0.5", None, 0.2),
        Likelihood(last, None, about(0.641), about(change, half)),
        nll(0.9, "0.75", 1.0, 0.3), nll(0.7, "ema", None, 0.1),
    ]  # fmt: skip


def test_sft_that_is_not_finished_goes_on_first_and_what_else_was_found_follows():
    """.0235 in a quarter is .094 in a run: 4 % of the 2.4 nats that SFT has lowered the NLL by."""
    shown = preview("0", 0.32, 0.55, best=0.36, same=(0.36, 0.28), verdicts=(TIE, TIE, BETTER, BETTER))
    for previews, answer, reference in (
        (shown, Answer.CANDIDATE, "0"),
        (preview("0", 0.37, 0.42, **HABIT), Answer.CANNOT_TELL, "0"),
        (preview("0", 0.36, 0.28, **HABIT), Answer.NONE, None),
    ):
        before = decide(findings((0.36, 0.35, 0.28), previews))
        found = decide(findings((0.36, 0.35, 0.28), previews, likelihoods=ended(0.0235)))
        assert (before.answer, found.answer) == (answer, Answer.TRAIN_ON)
        assert found.reference == before.reference == reference
        assert found.reasons[1:] == before.reasons
        assert found.reasons[0] == (
            "SFT is not finished, train on first: the held-out NLL was still falling when it ended, 0.641 at "
            "reference 0.75 and 0.618 at its end (nats per token). At that pace a run as long again would lower it "
            "by 0.094, 4% of the 2.400 that SFT has lowered it by. Where SFT is under-trained, more of it beats DPR."
        )


@pytest.mark.parametrize(
    "likelihoods",
    [
        ended(0.0115),  # .046 in a run: less than 2 % of 2.4
        ended(0.0235, half=0.03),  # not shown
        ended(0.0235, first=-0.1),  # SFT raised the NLL
        [nll(0.6), nll(1.2, "0.25", None, 0.6)],  # an early checkpoint says nothing about the end
        [nll(0.6), nll(0.7, "0.75", None, 0.1)],  # no other that says how far SFT came
        [nll(0.6)],
        [],
    ],
    ids=["slow", "not shown", "rising", "early", "alone", "none kept", "nothing"],
)
def test_sft_that_is_finished_or_of_which_nothing_is_known(likelihoods):
    assert train_on(likelihoods) is None
    found = decide(findings((0.36, 0.35, 0.28), preview("0.75", 0.36, 0.28, **HABIT), likelihoods=likelihoods))
    assert (found.answer, found.warnings) == (Answer.NONE, ())


def test_sft_that_has_begun_to_overfit():
    found = decide(findings((0.36, 0.35, 0.28), preview("0.75", 0.36, 0.28, **HABIT), likelihoods=ended(-0.02)))
    assert found.warnings == (
        "SFT has begun to overfit: the held-out NLL rose at its end, 0.641 at reference 0.75 and 0.618 at its end "
        "(nats per token). Stop it earlier.",
    )


def test_length_drift_and_answers_that_do_not_end():
    far = preview("0", 0.3, 0.3, length=4.0, longer=-2.0, **HABIT)
    endless = preview("0.5", 0.3, 0.3, truncated=0.4, **HABIT)
    found = decide(findings((0.36, 0.35, 0.28), [*far, *endless]))
    assert found.warnings == (
        "Reference 0 at beta 1: its answers have 4.0 tokens, those of SFT 6.0.",
        "Reference 0.5 at beta 1: 40% of them do not end, of SFT's 0%.",
    )


def test_a_reward_that_goes_with_length():
    found = decide(findings((0.36, 0.35, 0.28), preview("0", 0.3, 0.3, **HABIT), [reward("0", related=-0.7)]))
    assert re.search(r"goes with its length \(correlation by reference, 0: -0.70\)", found.warnings[0])


def test_deciding_needs_no_model():
    code = (
        "import sys, densepath.choice.decide, densepath.choice.compare; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
