"""Arms that were trained or decoded anyhow, against SFT at its best: what a made-up truth demands."""

from __future__ import annotations

import numpy as np
import pytest

from densepath.choice.compare import arm_findings
from densepath.choice.decide import decide
from densepath.errors import DataError
from densepath.records.arm import Arm, ArmResult
from densepath.records.choice import Answer, Findings
from densepath.records.codec import from_json, to_json

SFT = Arm("sft", "SFT", True)
PURIFIED = Arm("purified_sft", "purified SFT", False)


def result(arm, values, decoding="greedy"):
    return ArmResult(arm, "habit", 0, decoding, "validation", values, (5,) * len(values or (1, 1)), 0.0)


def drawn(chance, n=300, seed=0):
    return tuple((np.random.default_rng(seed).random(n) < chance).astype(float))


def test_an_arm_that_beats_sft_at_its_best_is_the_candidate():
    found = arm_findings(
        [result(SFT, drawn(0.3), "temperature 1"), result(SFT, drawn(0.5, seed=1))],
        [result(PURIFIED, drawn(0.4, seed=2), "temperature 1"), result(PURIFIED, drawn(0.7, seed=3))],
        verifier="exact_match",
    )
    decision = decide(found)
    assert (decision.answer, decision.policy, decision.decoding) == (Answer.CANDIDATE, "purified SFT", "greedy")
    assert (decision.reference, decision.beta) == (None, None)
    lead = np.mean(drawn(0.7, seed=3)) - np.mean(drawn(0.5, seed=1))  # over SFT greedy, its best
    assert decision.figure.mean == pytest.approx(lead)
    assert decision.p_holm < 0.05
    assert decision.reasons[0].startswith("purified SFT (greedy) is right on")
    assert from_json(Findings, to_json(found)) == found
    # sampled, it beats SFT at temperature 1 alone
    sampled = found.candidates[0]
    assert sampled.against_same.difference.mean == pytest.approx(np.mean(drawn(0.4, seed=2)) - np.mean(drawn(0.3)))


def test_an_arm_that_is_sft_is_none():
    values = drawn(0.5)
    decision = decide(arm_findings([result(SFT, values)], [result(PURIFIED, values)], verifier="exact_match"))
    assert (decision.answer, decision.policy) == (Answer.NONE, None)
    assert (decision.figure.mean, decision.p_holm) == (0.0, 1.0)


def test_four_prompts_show_nothing_however_large_the_lead():
    """All four gain: 2 of 16 sign vectors are as far out, p = .125, and twice that for two candidates."""
    wrong, right = (0.0,) * 4, (1.0,) * 4
    arms = [result(PURIFIED, right), result(Arm("dft", "DFT", False), (0.0, 0.0, 0.0, 1.0))]
    found = arm_findings([result(SFT, wrong)], arms, verifier="exact_match")
    assert [one.against_best.p for one in found.candidates] == [2 / 16, 1.0]
    decision = decide(found)
    assert (decision.answer, decision.policy, decision.p_holm) == (Answer.CANNOT_TELL, "purified SFT", 2 * 2 / 16)


def test_the_more_candidates_the_more_has_to_be_shown():
    """One candidate of p = .03 is shown; of two it is not."""
    sft = result(SFT, (0.0,) * 20)
    ahead = result(PURIFIED, (1.0,) * 6 + (0.0,) * 14)  # 2 / 64 = .031
    behind = result(Arm("dft", "DFT", False), (0.0,) * 20)
    assert decide(arm_findings([sft], [ahead], verifier="exact_match")).answer is Answer.CANDIDATE
    several = decide(arm_findings([sft], [ahead, behind], verifier="exact_match"))
    assert (several.answer, several.p_holm) == (Answer.CANNOT_TELL, 4 / 64)


@pytest.mark.parametrize(
    ("sft", "others", "words"),
    [
        ([], [], "no result of the SFT model"),
        ([result(SFT, (1.0, 0.0))], [result(PURIFIED, (1.0,))], "every arm needs a metric on the same prompts"),
        ([result(SFT, None)], [], "every arm needs a metric"),
        ([result(SFT, (1.0, 0.0), "beam")], [], "neither greedy nor a temperature"),
    ],
)
def test_what_cannot_be_compared_is_refused(sft, others, words):
    with pytest.raises(DataError, match=words):
        arm_findings(sft, others, verifier="exact_match")
