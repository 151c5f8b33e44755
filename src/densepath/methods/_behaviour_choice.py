"""Which behaviour purified SFT trains on: by what judges answers and the one rule of `choice`, or by the lift.

The lift is asked only where nothing judges answers, or what does tells nothing apart. Verdicts on too few prompts are
a weak guide, and still a better one than none: a training is not aimed at what they speak against.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from densepath.choice.compare import arm_findings
from densepath.choice.decide import decide
from densepath.evals.generation import Decoding, checked, generate
from densepath.io import remembered
from densepath.methods import Stage
from densepath.models.load import load_tokenizer
from densepath.progress import StageProgress
from densepath.records.arm import SFT, UNJUDGED, Arm, ArmResult
from densepath.records.behaviours import NEW_LIFT, Mixture
from densepath.records.choice import Answer
from densepath.records.codec import from_json, to_json
from densepath.rewards.loading import load_policies
from densepath.stats.intervals import metric_interval

ONE_BEHAVIOUR = 0.99
"""Share of the demonstrations above which a behaviour is all there is: a bound of our own."""
DFT = "DFT on all demonstrations"


@dataclass(frozen=True)
class Chosen:
    """What is trained on.

    Attributes:
        mixtures: what was found, with the verdicts of each behaviour where something judges answers.
        behaviour: number of the behaviour, and K; None where it is none.
        everything: all demonstrations, by the loss of DFT. With neither the SFT model is kept.
        reason: why.
    """

    mixtures: tuple[Mixture, ...]
    behaviour: tuple[int, int] | None
    everything: bool
    reason: str


def choose(stage: Stage, mixtures: tuple[Mixture, ...], models: Mapping[str, Path]) -> Chosen:
    """The behaviour by the verdicts of a verifier or judge; without one, or where all are the same, by the lift.

    A lead that the correction for all candidates leaves open is followed where its own 95 % interval lies above zero,
    or the lift names the same behaviour: it says where to train, and the trained model is measured again. Else SFT is
    kept.

    Args:
        stage: the recipe, and where verdicts are kept.
        mixtures: what was found.
        models: folder of each candidate, by `behaviour_name` or `DFT`.
    """
    if stage.check is None:
        chosen, reason = by_lift(mixtures)
        return Chosen(mixtures, chosen, False, reason)
    results = _on_common_prompts(_judged(stage, models))
    sft = results.pop(SFT)
    mixtures = tuple(_with_verdicts(mixture, results) for mixture in mixtures)
    judge = stage.arguments.judge or stage.arguments.verifier
    decision = decide(arm_findings([sft], list(results.values()), verifier=judge))
    judged = {
        behaviour_name(each.number, len(mixture.behaviours)): (each.number, len(mixture.behaviours))
        for mixture in mixtures
        for each in mixture.behaviours
    }
    leader = judged.get(str(decision.policy))
    if decision.answer is Answer.CANDIDATE:
        return Chosen(mixtures, leader, decision.policy == DFT, decision.reason)
    if decision.answer is Answer.NONE:
        return Chosen(mixtures, None, False, decision.reason)
    by_reward, reason = by_lift(mixtures)
    if decision.policy is None:
        return Chosen(mixtures, by_reward, False, f"{decision.reason} Without a verdict of {judge}: {reason}")
    if decision.figure is not None and decision.figure.low > 0:
        why = "Before that correction its interval lies above zero: it is trained on, and measured again"
        return Chosen(mixtures, leader, decision.policy == DFT, f"{decision.reason} {why}")
    if leader is not None and leader == by_reward:
        return Chosen(mixtures, leader, False, f"{decision.reason} The lift names the same: {reason}")
    return Chosen(mixtures, None, False, f"{decision.reason} The SFT model is kept")


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
    `NEW_LIFT`.
    """
    best = max(mixtures, key=lambda mixture: -float("inf") if mixture.held_out is None else mixture.held_out)
    of = len(best.behaviours)
    largest = max(best.behaviours, key=lambda each: each.share)
    if largest.share > ONE_BEHAVIOUR:
        return None, (
            f"the demonstrations are one behaviour: {largest.share:.1%} of them are behaviour {largest.number} of "
            f"{of}, and there is nothing to set aside. The SFT model is kept"
        )
    raised = [each for each in best.behaviours if each.lift is not None and each.lift > 0 and not each.is_new]
    if raised:
        top = max(raised, key=lambda each: each.share)
        reason = (
            f"behaviour {top.number} of {of} is the largest that SFT raised, by {top.lift:.2f} nats, and that the "
            f"model before it shows too: {top.share:.0%} of the demonstrations"
        )
        return (top.number, of), reason
    new = [each for each in best.behaviours if each.lift is None or each.is_new]
    if new and len(new) == of:
        return None, (
            f"every behaviour has a lift of {NEW_LIFT:g} or more: it is new, and the reward cannot judge what the "
            "model before SFT never did. The SFT model is kept; give a verifier"
        )
    return None, "no behaviour was raised by SFT and known before it. The SFT model is kept; give a verifier"


def behaviour_name(number: int, of: int) -> str:
    """`behaviour 1 of 2`: its name as a candidate."""
    return f"behaviour {number} of {of}"


def _judged(stage: Stage, models: Mapping[str, Path]) -> dict[str, ArmResult]:
    """Name -> verdicts on answers of the SFT model and of each candidate's model to the validation prompts."""
    found = {}
    for name, path in {SFT: stage.sft.model, **models}.items():
        file = stage.folder / f"validation/{name.replace(' ', '-')}.json"
        verdicts = remembered(file, functools.partial(_verdicts_json, stage, name, path))
        found[name] = from_json(ArmResult, verdicts)
    return found


def _verdicts_json(stage: Stage, name: str, path: Path) -> dict[str, Any]:
    return to_json(_verdicts(stage, name, path))


def _verdicts(stage: Stage, name: str, path: Path) -> ArmResult:
    arguments = stage.arguments
    rows = stage.sft.rows("validation")
    decoding = Decoding(arguments.eval_temperatures[0], arguments.max_completion_length, seed=2 * arguments.seed)
    (policy,) = load_policies([path], device="auto", **arguments.model_options())
    tokenizer = load_tokenizer(str(stage.sft.model))
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
