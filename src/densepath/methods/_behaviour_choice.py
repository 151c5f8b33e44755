"""Which behaviour purified SFT trains on, and whether the model that this leaves is taken.

A verifier or judge is asked twice. First of the models of the behaviours, which are hardly trained: their order says
where to go. Then of the model that was trained there, against the SFT model, by the one rule of `choice`: as a
candidate is judged, so it is left. The lift is asked where nothing judges answers, or what does tells nothing apart.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

from densepath.choice.compare import arm_findings
from densepath.choice.decide import decide
from densepath.evals.generation import Decoding, checked, generate
from densepath.io import remembered
from densepath.methods import Stage
from densepath.progress import StageProgress
from densepath.records.arm import SFT, UNJUDGED, Arm, ArmResult
from densepath.records.behaviours import NEW_LIFT, Behaviour, Mixture
from densepath.records.choice import Answer
from densepath.records.codec import from_json, to_json
from densepath.records.estimates import LEVEL
from densepath.rewards.loading import load_policies
from densepath.stats.intervals import metric_interval
from densepath.trainers.processes import from_first

ONE_BEHAVIOUR = 0.99
"""Share of the demonstrations above which a behaviour is all there is: a bound of our own."""
NEARLY_ALL = 0.9
"""Share of answers cut off above which verdicts are not on what a model has to say: a bound of our own."""
NOT_JUDGED = "as nearly all answers were cut off: raise max_completion_length"
PURIFIED, DFT = "purified SFT", "DFT on all demonstrations"


@dataclass(frozen=True)
class Aim:
    """What is trained on.

    Attributes:
        mixtures: what was found, with the verdicts of each behaviour where something judges answers.
        behaviour: its number, and K; None where it is none, and the SFT model is kept.
        reason: why.
        cut: largest share of a model's answers to validation prompts that did not end within the budget of tokens.
    """

    mixtures: tuple[Mixture, ...]
    behaviour: tuple[int, int] | None
    reason: str
    cut: float = 0.0


def aim(stage: Stage, mixtures: tuple[Mixture, ...], models: Mapping[str, Path]) -> Aim:
    """The behaviour whose model has the best verdicts; without any, or where all have the same, by the lift.

    Args:
        stage: the recipe, and where verdicts are kept.
        mixtures: what was found.
        models: folder of each behaviour's model, by `behaviour_name`.
    """
    by_reward, reason = by_lift(mixtures)
    if stage.check is None or _one_behaviour(mixtures) is not None:
        return Aim(mixtures, by_reward, reason)
    results = _on_common_prompts(_judged(stage, models))
    cut = _most_cut(results)
    mixtures = tuple(_with_verdicts(mixture, results) for mixture in mixtures)
    share, value = {}, {}
    for mixture in mixtures:
        for each in mixture.behaviours:
            assert each.validation is not None
            place = each.number, len(mixture.behaviours)
            share[place], value[place] = each.share, each.validation.mean
    best, prompts = max(value.values()), len(next(iter(results.values())).values or ())
    leaders = [place for place in value if value[place] == best]
    if len(leaders) == len(value):
        told = f"the models of all behaviours have {best:.3f} on {prompts} validation prompts"
        if _nearly_all_cut(results):
            return Aim(mixtures, None, f"{told}, {NOT_JUDGED}. The SFT model is kept", cut)
        return Aim(mixtures, by_reward, f"{told}: by the reward, {reason}", cut)
    place = by_reward if by_reward in leaders else max(leaders, key=lambda each: share[each])
    second = max(each for each in value.values() if each < best)
    told = f"{behaviour_name(*place)}: its model has {best:.3f} on {prompts} validation prompts, the next {second:.3f}"
    return Aim(mixtures, place, told, cut)


def taken(stage: Stage, candidates: Mapping[str, Path], *, by_reward: bool) -> tuple[str | None, str, float]:
    """Name of the candidate that is left, None for the SFT model; why; and the largest share of answers cut off.

    A lead that is not shown is followed where the sign-flip test alone shows it, before the correction for several
    candidates, or where the lift had said the same and answers were judged that ended.

    Args:
        stage: the recipe, with what judges answers; where verdicts are kept.
        candidates: folders of `PURIFIED` and perhaps of `DFT`, trained as they would be left.
        by_reward: whether the lift names the behaviour that purified SFT was trained on.
    """
    results = _on_common_prompts(_judged(stage, {SFT: stage.sft.model, **candidates}))
    cut, unjudged = _most_cut(results), _nearly_all_cut(results)
    sft = results.pop(SFT)
    judge = stage.arguments.judge or stage.arguments.verifier
    decision = decide(arm_findings([sft], list(results.values()), verifier=judge))
    if decision.answer is Answer.CANDIDATE:
        return decision.policy, decision.reason, cut
    if decision.answer is Answer.CANNOT_TELL:
        if decision.p is not None and decision.p < LEVEL:
            return decision.policy, f"{decision.reason} Before the correction it is shown, and it is taken", cut
        if by_reward and decision.policy in (None, PURIFIED) and not unjudged:
            return PURIFIED, f"{decision.reason} By the lift it is taken", cut
    return None, f"{decision.reason} The SFT model is kept{f', {NOT_JUDGED}' if unjudged else ''}", cut


def _most_cut(results: Mapping[str, ArmResult]) -> float:
    return max(each.truncated for each in results.values())


def _nearly_all_cut(results: Mapping[str, ArmResult]) -> bool:
    """Whether hardly an answer of any model ended: what a verdict on them says of the models is that alone."""
    return min(each.truncated for each in results.values()) > NEARLY_ALL


def _on_common_prompts(results: Mapping[str, ArmResult]) -> dict[str, ArmResult]:
    """Without the prompts of which a judge could say nothing for one of them."""
    unjudged = {prompt for result in results.values() for prompt in result.unjudged}
    return {name: result.without(unjudged) for name, result in results.items()}


def _with_verdicts(mixture: Mixture, results: Mapping[str, ArmResult]) -> Mixture:
    of = len(mixture.behaviours)
    judged = (
        replace(each, validation=metric_interval(results[behaviour_name(each.number, of)].values or ()))
        for each in mixture.behaviours
    )
    return replace(mixture, behaviours=tuple(judged))


def by_lift(mixtures: Sequence[Mixture]) -> tuple[tuple[int, int] | None, str]:
    """The behaviour that is trained on where nothing judges, with its K, and why; None: the SFT model is kept.

    Of the mixture that explains the held-out demonstrations best, the largest behaviour that SFT raised by less than
    `NEW_LIFT`. The largest of K lifts is above 0 by chance alone, so a lift counts that is as many standard errors
    above 0 as one of K is in 5 % of cases.
    """
    if (why := _one_behaviour(mixtures)) is not None:
        return None, why
    best = _best_explained(mixtures)
    of = len(best.behaviours)
    above = [each for each in best.behaviours if (each.lift or 0) > 0 and not each.is_new]
    if raised := [each for each in above if _is_raised(each, of)]:
        top = max(raised, key=lambda each: each.share)
        reason = (
            f"behaviour {top.number} of {of} is the largest that SFT raised, by {top.lift:.2f} nats (standard error "
            f"{top.lift_error:.2f}), and that the model before it shows too: {top.share:.0%} of the demonstrations"
        )
        return (top.number, of), reason
    new = [each for each in best.behaviours if each.lift is None or each.is_new]
    if new and len(new) == of:
        return None, (
            f"every behaviour has a lift of {NEW_LIFT:g} or more: it is new, and the reward cannot judge what the "
            "model before SFT never did. The SFT model is kept; give a verifier"
        )
    if above:
        top = max(above, key=lambda each: each.lift or 0)
        return None, (
            f"no lift is told from 0: the highest, of behaviour {top.number} of {of}, is {top.lift:.2f} nats with a "
            f"standard error of {top.lift_error:.2f}. The SFT model is kept; give a verifier, or more purify_samples"
        )
    return None, "no behaviour was raised by SFT and known before it. The SFT model is kept; give a verifier"


def _is_raised(behaviour: Behaviour, of: int) -> bool:
    """Whether the lift of one of so many behaviours is above 0 by more than chance."""
    if behaviour.lift is None or behaviour.lift_error is None:
        return False
    return behaviour.lift > NormalDist().inv_cdf(1 - LEVEL / of) * behaviour.lift_error


def _one_behaviour(mixtures: Sequence[Mixture]) -> str | None:
    """Why there is nothing to set aside; None where there is."""
    best = _best_explained(mixtures)
    largest = max(best.behaviours, key=lambda each: each.share)
    if largest.share <= ONE_BEHAVIOUR:
        return None
    return (
        f"the demonstrations are one behaviour: {largest.share:.1%} of them are behaviour {largest.number} of "
        f"{len(best.behaviours)}, and there is nothing to set aside. The SFT model is kept"
    )


def _best_explained(mixtures: Sequence[Mixture]) -> Mixture:
    return max(mixtures, key=lambda mixture: -float("inf") if mixture.held_out is None else mixture.held_out)


def behaviour_name(number: int, of: int) -> str:
    """`behaviour 1 of 2`: its name as a candidate."""
    return f"behaviour {number} of {of}"


def _judged(stage: Stage, models: Mapping[str, Path]) -> dict[str, ArmResult]:
    """Name -> verdicts on answers of each model to the validation prompts."""
    found = {}
    for name, path in models.items():
        file = stage.folder / f"validation/{name.replace(' ', '-')}.json"
        answered = functools.partial(_verdicts_json, stage, name, path)
        verdicts = from_first(functools.partial(remembered, file, answered))
        found[name] = from_json(ArmResult, verdicts)
    return found


def _verdicts_json(stage: Stage, name: str, path: Path) -> dict[str, Any]:
    return to_json(_verdicts(stage, name, path))


def _verdicts(stage: Stage, name: str, path: Path) -> ArmResult:
    arguments = stage.arguments
    rows = stage.sft.rows("validation")
    decoding = Decoding(arguments.eval_temperatures[0], arguments.max_completion_length, seed=2 * arguments.seed)
    (policy,) = load_policies([path], device="auto", **arguments.model_options())
    tokenizer = stage.sft.tokenizer()
    title = f"{stage.title}, {name}"
    with StageProgress(stage.console, title, len(rows), "completion") as progress, policy.active() as model:
        found = generate(model, tokenizer, rows, decoding, on_progress=lambda done, _: progress.update(done))
    assert stage.check is not None
    answers = checked(found, rows, stage.check(policy))
    return ArmResult(
        arm=Arm(name, name, name == SFT),
        setting="purification",
        seed=arguments.seed,
        decoding=decoding.name,
        split="validation",
        values=tuple(UNJUDGED if each.metric is None else each.metric for each in answers),
        unjudged=tuple(each.row for each in answers if each.metric is None),
        lengths=tuple(len(each.completion_ids) for each in answers),
        truncated=sum(each.truncated for each in answers) / len(answers),
    )
