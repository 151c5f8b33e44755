"""What else the findings say that somebody who acts on a decision should know."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.choice.training import overfitted
from densepath.records.choice import Answers, Findings, RewardFigures
from densepath.report.verdict import place_warning

LENGTH_CHANGE = 0.2
"""Share of the SFT model's length by which a candidate must differ to be warned of."""

TRUNCATED_MORE = 0.1
"""Share of completions that a candidate cuts off beyond those of SFT, to be warned of."""


def all_warnings(findings: Findings, taken: Answers | None) -> tuple[str, ...]:
    """On the judge, the end of SFT, lengths and ends of the candidate taken (or of all), and the reward: sentences."""
    known = (place_warning(findings.position, "the pairs"), overfitted(findings.likelihoods))
    return (*filter(None, known), *_drift_warnings(findings, taken), *_length_warnings(findings.rewards))


def _drift_warnings(findings: Findings, taken: Answers | None) -> tuple[str, ...]:
    """Candidates at temperature 1 whose length drifts, or that no longer end: the one taken, or all."""
    at_one = next((answers for answers in findings.sft if answers.temperature == 1), None)
    if at_one is None:
        return ()
    found = []
    for one in findings.candidates:
        if one.temperature != 1 or one.longer is None:
            continue
        if taken is not None and one.who != taken.who:
            continue
        parts = []
        drift = one.longer.mean / at_one.length.mean
        if abs(drift) > LENGTH_CHANGE and (one.longer.low > 0 or one.longer.high < 0):
            parts.append(f"its answers have {one.length.mean:.1f} tokens, those of SFT {at_one.length.mean:.1f}")
        if one.truncated > at_one.truncated + TRUNCATED_MORE:
            parts.append(f"{one.truncated:.0%} of them do not end, of SFT's {at_one.truncated:.0%}")
        if parts:
            name = one.policy or f"Reference {one.reference} {one.strength}"
            found.append(f"{name}: {'; '.join(parts)}.")
    return tuple(found)


def _length_warnings(rewards: Sequence[RewardFigures]) -> tuple[str, ...]:
    strong = [r for r in rewards if r.length_correlation is not None and abs(r.length_correlation) > 0.5]
    if not strong:
        return ()
    parts = "; ".join(f"{r.reference}: {r.length_correlation:+.2f}" for r in strong)
    return (
        f"A completion's reward goes with its length (correlation by reference, {parts}): watch the length in DPR.",
    )
