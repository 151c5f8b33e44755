"""Choice of the reference and of beta on validation prompts, before any RL: measured, then decided by the one rule.

DPR is run with the candidate that is shown to beat the SFT model at its best. Where that cannot be told, it is run
with the one that looks best, and the test prompts will tell; where none is better, it is left out. A reference that
was given is used regardless. SFT that is not finished is made longer where the recipe leaves its length open
(`unfinished`), and else a warning, said before any arm is trained.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

from densepath.choice.decide import best_candidate, best_of_sft, decide
from densepath.choice.inputs import Evidence, MeasurePlan, SFTModels
from densepath.choice.measure import judged_answers, measure
from densepath.choice.training import train_on
from densepath.config.run import RunArguments
from densepath.data.rows import is_answered
from densepath.data.training_rows import measured_rows
from densepath.errors import DataError
from densepath.io import remembered, write_json_atomic
from densepath.methods import SFTRun
from densepath.models.compat import weights_differ
from densepath.models.references import fraction_of
from densepath.pipeline.against_sft import judge_of_run
from densepath.pipeline.run_folder import RunFolder
from densepath.progress import StageProgress
from densepath.records.choice import (
    UNITS,
    Answer,
    CandidateRow,
    ChosenReference,
    Criterion,
    Decision,
    Findings,
    ReferenceChoice,
)
from densepath.records.codec import read_record, to_json
from densepath.rewards.loading import load_policies
from densepath.terminal import Console, warn


def candidate_references(sft: SFTRun) -> list[str]:
    """The references to choose among: all that there are, or the one that is fixed."""
    return sft.references if sft.arguments.reference == "auto" else [sft.arguments.reference]


def candidate_betas(arguments: RunArguments) -> list[float]:
    """The values of beta to choose among, or the one that is fixed."""
    return list(arguments.candidate_betas) if arguments.beta == "auto" else [float(arguments.beta)]


def run_selection(run: RunFolder, sft: SFTRun, console: Console, title: str, *, capped: bool) -> None:
    """Write `selection.json`: the candidates, what was found, and what was chosen and why.

    Args:
        run: the folder of the SFT run, open.
        sft: the SFT run.
        console: where progress goes.
        title: of the progress.
        capped: the capped reward is a candidate too.
    """
    started, arguments = time.monotonic(), sft.arguments
    references, betas = candidate_references(sft), candidate_betas(arguments)
    warnings = tuple(
        f"reference {name} has the same weights as the SFT model: the reward is zero everywhere"
        for name in references
        if not weights_differ(sft.model, sft.reference(name))
    )
    given = _given(sft)
    if given is not None:
        choice = ReferenceChoice("fixed", "none", given, ChosenReference(references[0], betas[0]))
    else:
        choice = _choose(arguments, _measure(run, sft, console, title, capped))
    choice = dataclasses.replace(choice, warnings=(*choice.warnings, *warnings))
    for warning in choice.warnings:
        warn(console, warning)
    write_json_atomic(run / "selection.json", to_json(choice))
    run.finish("selection", started)


def check_choice(sft: SFTRun) -> None:
    """Refuse a choice that nothing could decide, as soon as the rows are there.

    Raises:
        DataError: no verifier and no judge, and validation prompts without an answer to compare with.
    """
    judged = sft.arguments.verifier is not None or sft.arguments.judge is not None
    if _given(sft) is None and not judged and not any(map(is_answered, sft.rows("validation"))):
        raise DataError(
            f"{_source(sft)}: reference=auto needs a verifier or a judge, or held-out rows with "
            "a completion to compare with; give one of them, or fix the reference and beta"
        )


def _given(sft: SFTRun) -> str | None:
    """Why nothing is to be chosen; None where something is."""
    arguments = sft.arguments
    if len(candidate_references(sft)) == 1 and len(candidate_betas(arguments)) == 1 and arguments.reference != "auto":
        return "reference and beta were given"
    if arguments.dense_reward != "baseline_relative":
        return f"the reward {arguments.dense_reward} uses no reference"
    return None


def read_choice(path: Path) -> ReferenceChoice:
    """What the choice in the folder of an SFT run came to."""
    return read_record(ReferenceChoice, path / "selection.json")


def chosen(path: Path) -> ChosenReference | None:
    """What DPR is run with after the choice in the folder of an SFT run; None if it is left out, or none was made."""
    return read_choice(path).chosen if (path / "selection.json").exists() else None


def settled(arguments: RunArguments, path: Path) -> RunArguments | None:
    """The recipe of an arm with what it leaves open taken from the choice in the folder of its SFT run.

    What the arm gives holds. Where none helps, an arm that gives its reference takes the first candidate for beta.

    Returns:
        The recipe; None where the arm leaves its reference open and none helps.
    """
    found = chosen(path)
    if found is None:
        if arguments.reference == "auto":
            return None
        found = ChosenReference(arguments.reference, candidate_betas(arguments)[0])
    reference = found.reference if arguments.reference == "auto" else arguments.reference
    beta = str(found.beta) if arguments.beta == "auto" else arguments.beta
    return dataclasses.replace(arguments, reference=reference, beta=beta)


def answers_for_the_choice(sft: SFTRun, *, capped: bool) -> int:
    """Answers to each validation prompt that the choice has judged; 0 where nothing is chosen.

    Args:
        sft: the SFT run.
        capped: the capped reward is a candidate too.
    """
    if _given(sft) is not None:
        return 0
    return judged_answers(_plan(sft.arguments, capped), len(candidate_references(sft)))


def _plan(arguments: RunArguments, capped: bool) -> MeasurePlan:
    return MeasurePlan(
        betas=tuple(candidate_betas(arguments)),
        every_beta=False,
        max_completion_length=arguments.completion_tokens,
        capped=capped,
        ensemble=False,  # DPR is run with one of them
        seed=arguments.seed,
    )


def unfinished(sft: SFTRun, console: Console, title: str) -> str | None:
    """Why SFT is to be longer, by the NLL of held-out demonstrations; None where it is finished or nothing tells.

    Args:
        sft: the SFT run, trained.
        console: where progress goes.
        title: of the progress.
    """
    kept = sorted((name for name in sft.references if fraction_of(name) is not None), key=float)
    rows = list(filter(is_answered, sft.rows("validation"))) if len(kept) > 1 else []  # one has no pace
    rows = measured_rows(rows, sft.tokenizer(), sft.context, judged=False)
    if not rows:
        return None
    models, plan = _models(sft, dict.fromkeys((kept[0], kept[-1]))), _plan(sft.arguments, capped=False)
    with StageProgress(console, title, None, "completion") as progress:
        findings = measure(
            models,
            Evidence(rows, source=_source(sft)),
            dataclasses.replace(plan, num_generations=0),
            on_progress=lambda done, total: progress.update(done, total),
        )
    return train_on(findings.likelihoods)


def _measure(run: RunFolder, sft: SFTRun, console: Console, title: str, capped: bool) -> Findings:
    arguments = sft.arguments
    models = _models(sft, candidate_references(sft))
    judged = arguments.verifier is not None or arguments.judge is not None
    rows = sft.rows("validation")
    rows = measured_rows(
        rows if judged else list(filter(is_answered, rows)), models.tokenizer, sft.context, judged=judged
    )
    checks = arguments.verifier if arguments.judge is None else judge_of_run(sft, arguments, models.sft)
    with StageProgress(console, title, None, "completion") as progress:
        return measure(
            models,
            Evidence(rows, checks, source=_source(sft)),
            _plan(arguments, capped),
            on_progress=lambda done, total: progress.update(done, total),
            keep=lambda name, compute: remembered(run / f"selection/{name}.json", compute),
        )


def _models(sft: SFTRun, references: Iterable[str]) -> SFTModels:
    """The SFT model, loaded, and some of its references."""
    options = sft.arguments.model_options()
    (policy,) = load_policies([sft.model], **options, device="auto")
    named = {name: sft.reference(name) for name in references}
    return SFTModels(policy, named, sft.tokenizer(), model_options={**options, "device": "auto"})


def _source(sft: SFTRun) -> str:
    return str(sft.path / "data/validation.jsonl")


def _choose(arguments: RunArguments, findings: Findings) -> ReferenceChoice:
    """The decision, and what it means for a run: a reference that was given is obeyed."""
    decision = decide(findings)
    found = None
    if decision.reference is not None and decision.beta is not None:
        found = ChosenReference(decision.reference, decision.beta, decision.capped)
    unfinished = decision.answer is Answer.TRAIN_ON
    reason = " ".join(decision.reasons[1:]) if unfinished else decision.reason
    if decision.answer is Answer.CANNOT_TELL and found is not None:
        reason = f"it cannot be told whether it helps, so the test prompts will tell. {reason}"
    if found is None and arguments.reference != "auto":
        reason = f"the reference was given. {reason}"
        found = _obeyed(arguments, findings)
    if found is not None and arguments.beta != "auto":  # the preview of the capped reward is the same at every beta
        found = dataclasses.replace(found, beta=float(arguments.beta))
    judged = bool(findings.sft) and findings.sft[0].value is not None
    return ReferenceChoice(
        mode="auto",
        criterion=_criterion_text(arguments, findings),
        reason=reason,
        chosen=found,
        baseline=best_of_sft(findings).value if judged else None,
        rows=_rows_shown(findings, decision),
        warnings=decision.reasons[:1] if unfinished else (),
        decision=decision,
        findings=findings,
    )


def _obeyed(arguments: RunArguments, findings: Findings) -> ChosenReference:
    """The given reference with the strength that looks best."""
    best = best_candidate(findings)
    if best is None:
        return ChosenReference(arguments.reference, candidate_betas(arguments)[0])
    return ChosenReference(arguments.reference, best.beta, best.capped)


def _criterion_text(arguments: RunArguments, findings: Findings) -> str:
    if findings.criterion is Criterion.ANSWERS:
        on = f"{findings.prompts} validation prompts"
        return f"{findings.verifier} of previews of DPR on {on}, against SFT at its best"
    if findings.criterion is None:
        return "none"
    return f"{UNITS[findings.criterion]} of the reward ({findings.criterion.value}), {findings.prompts} prompts"


def _rows_shown(findings: Findings, decision: Decision) -> tuple[CandidateRow, ...]:
    """A row for each reference and beta, at the decoding at which it leads most."""
    if findings.criterion is not Criterion.ANSWERS:
        beta = findings.betas[0]
        return tuple(
            CandidateRow(one.reference, beta, None, one.value, None, None, one.value.n)
            for one in findings.agreement
            if one.criterion is findings.criterion
        )
    best: dict[str, CandidateRow] = {}
    for one in findings.candidates:
        lead = one.against_best
        if one.reference is None or one.value is None or lead is None:
            continue
        known = best.get(one.who)
        if known is None or (known.lead is not None and lead.difference.mean > known.lead.mean):
            best[one.who] = CandidateRow(
                one.reference,
                one.beta,
                one.decoding,
                one.value,
                lead.difference,
                lead.verdict,
                findings.prompts,
                one.capped,
            )
    return tuple(best.values())
