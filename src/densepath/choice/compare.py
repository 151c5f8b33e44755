"""Candidates against the SFT model, paired over prompts: numbers alone, no models."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from densepath.errors import DataError
from densepath.records.arm import ArmResult
from densepath.records.choice import Answers, Criterion, Findings
from densepath.records.estimates import Comparison
from densepath.stats.comparisons import corrected
from densepath.stats.intervals import mean_interval, metric_interval
from densepath.stats.seeds import seed_difference


def with_leads(sft: Sequence[Answers], candidates: Sequence[Answers]) -> tuple[Answers, ...]:
    """The candidates with their lead over SFT at its best temperature, and over SFT at their own.

    Every decoding of every candidate is a comparison that Holm's correction counts. The test is the sign-flip test
    over prompts: a few prompts never show a lead, however large.

    Args:
        sft: answers of the SFT model, all judged.
        candidates: theirs, to the same prompts.
    """
    if not candidates:
        return ()
    best = max(sft, key=lambda answers: float(np.mean(answers.verdicts)))
    same = {answers.temperature: answers for answers in sft}
    over_best = _leads([(one, best) for one in candidates])
    over_same = _leads([(one, same[one.temperature]) for one in candidates if one.temperature in same])
    return tuple(
        dataclasses.replace(one, against_best=over_best[one.label], against_same=over_same.get(one.label))
        for one in candidates
    )


def _leads(pairs: Sequence[tuple[Answers, Answers]]) -> dict[str, Comparison]:
    """Label of each candidate -> its lead, paired over prompts and corrected for all of them."""
    differences = [seed_difference([one.verdicts], [other.verdicts]) for one, other in pairs]
    found = corrected([(one.label, other.label) for one, other in pairs], differences)
    return {one.measure: one for one in found}


def arm_findings(sft: Sequence[ArmResult], candidates: Sequence[ArmResult], *, verifier: str) -> Findings:
    """Findings about policies that were trained or decoded anyhow, for the same decision.

    Args:
        sft: the SFT model on validation, at each of its decodings.
        candidates: other arms at theirs, on the same prompts with the same seed.
        verifier: name of what the values come from.

    Raises:
        DataError: no result of SFT, one without a metric, or other numbers of prompts.
    """
    if not sft:
        raise DataError("there is no result of the SFT model to compare with")
    for result in (*sft, *candidates):
        if result.values is None or len(result.values) != len(sft[0].values or ()):
            raise DataError(f"{result}: every arm needs a metric on the same prompts")
    own = tuple(_answers(result, None) for result in sft)
    others = tuple(_answers(result, result.arm.label) for result in candidates)
    return Findings(
        prompts=len(own[0].verdicts),
        verifier=verifier,
        preferences=0,
        sft=own,
        candidates=with_leads(own, others),
        criterion=Criterion.ANSWERS,
    )


def _answers(result: ArmResult, policy: str | None) -> Answers:
    assert result.values is not None
    lengths = tuple(np.reshape(result.lengths, (len(result.values), -1)).mean(axis=1).tolist())
    return Answers(
        reference=None,
        alpha=0.0,
        temperature=_temperature(result.decoding),
        value=metric_interval(result.values),
        length=mean_interval(lengths),
        truncated=result.truncated,
        policy=policy,
        kl=None if result.kl is None else mean_interval(result.kl),
        reward=None if result.reward is None else mean_interval(result.reward),
        verdicts=result.values,
        lengths=lengths,
    )


def _temperature(decoding: str) -> float:
    if decoding == "greedy":
        return 0.0
    match = re.fullmatch(r"temperature ([0-9.]+)", decoding)
    if match is None:
        raise DataError(f"decoding {decoding!r} is neither greedy nor a temperature")
    return float(match[1])
