"""What a reader does next: why, and the command to type, with the names that the page knows. The end of every page.

A name in capitals is one that the reader has to put in.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densepath.records.behaviours import Purification
from densepath.records.choice import Answer, Decision
from densepath.records.estimates import Verdict
from densepath.records.judge_eval import JudgeEvaluation
from densepath.records.judge_report import JudgeReport
from densepath.records.results import Results
from densepath.report.document import Next
from densepath.report.records import Report

JUDGE, PROMPTS, PAIRS, ROWS = "local:JUDGE", "PROMPTS.jsonl", "PAIRS.jsonl", "DEMONSTRATIONS.jsonl"
OTHER = "OTHER-PROMPTS.jsonl"
SFT, BEFORE, OWN = "SFT-MODEL", "MODEL-BEFORE-SFT", "MODEL"
_MORE_SEEDS, _MORE_PROMPTS = 2, 4
_OTHER_BETAS = (0.25, 2.0)
_JUDGE_NAME = re.compile(r"([a-z_]+:\S+)(?: \(.*\))?")
"""What a judge was called by, and its template."""


def typed(command: str, **arguments: Any) -> str:
    """A command as it is typed; arguments that are None or an empty list are left out.

    >>> typed("judge", models=["a", "my model"], baseline=None, max_samples=8)
    "densepath judge --models a 'my model' --max_samples 8"
    """
    words = ["densepath", command]
    for name, value in arguments.items():
        given = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        words += [f"--{name}", *map(_word, given)] if given else []
    return shlex.join(words)


def _word(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, (bool, dict)) else str(value)


def after_run(report: Report, kind: str) -> Next:
    """Of a run, by what its page answers."""
    folder, seed = str(report.config.get("output_dir") or report.run), report.config.get("seed")
    recipe = f"{folder}/config.yaml"
    if kind == "better":
        other = seed + 1 if isinstance(seed, int) else 1
        again = typed("run", config=recipe, seed=other, output_dir=f"{folder}-seed-{other}")
        return Next("one run does not say how another would end: train with another seed.", again)
    if kind == "unknown":
        return Next("go on: finished stages are kept, and the evaluation follows.", typed("run", config=recipe))
    if kind == "unchecked":
        return Next("have a judge compare the answers of the trained models with SFT's.", _judge_arms(report, folder))
    if kind == "none-helps":
        words = "try references and betas that were not tried; where none helps, keep the SFT model."
    else:
        words = "keep the SFT model; this says, before any training, whether another reference or beta helps."
    return Next(words, _diagnose(report.config, folder))


def _diagnose(config: Mapping[str, Any], folder: str) -> str:
    """Of the SFT run on the run's validation rows; of an SFT model without its run, whose choice a run alone makes."""
    if config.get("sft_model_name_or_path"):
        tried = {"reference": "auto", "beta": "auto", "candidate_betas": _OTHER_BETAS}
        return typed("run", config=f"{folder}/config.yaml", **tried, output_dir=f"{folder}-chosen")
    if config.get("sft_from") is None:
        return typed("diagnose", run_dir=folder)
    rows = f"{folder}/data/validation.jsonl"
    checks = {name: config.get(name) for name in ("verifier", "judge", "max_completion_length")}
    return typed("diagnose", run_dir=config["sft_from"], dataset_name=rows, **checks)


def _sft_model(config: Mapping[str, Any], folder: str) -> str:
    """Where the SFT model of a run lies: its own, or the one that was given."""
    if config.get("sft_model_name_or_path"):
        return str(config["sft_model_name_or_path"])
    given = config.get("sft_from")
    own = f"{given or folder}/sft/model"
    return own if given is None or Path(own).is_dir() else f"{given}/model"


def _judge_arms(report: Report, folder: str) -> str:
    kept = report.purification is not None and not report.purification.trained
    names = [arm.name for arm in report.results.methods if not arm.control] if report.results else []
    names = [name for name in names if not (kept and name == "purified_sft")]
    models = [f"{folder}/{name}/model" for name in names] or [OWN]
    baseline = _sft_model(report.config, folder)
    return typed("judge", benchmark=f"{folder}/data/test.jsonl", models=models, baseline=baseline, judge=JUDGE)


def after_experiment(record: Results) -> Next:
    """Of an experiment: more seeds, which the same folder takes."""
    command = record.info.get("command") or typed("experiment", config="RECIPE.yaml")
    seeds = [seed for setting in record.settings for seed in setting.seeds]
    first = max(seeds, default=-1) + 1
    more = sorted({*seeds, *range(first, first + _MORE_SEEDS)})
    told = [each for each in record.settings if each.position is None or not each.position.decides]
    better = any(one.primary and one.verdict is Verdict.BETTER for each in told for one in each.comparisons)
    words = (
        "a method is better; add seeds until you would bet on it, then train it with densepath run."
        if better
        else "where all tie, keep the cheapest; more seeds or test prompts show smaller differences."
    )
    return Next(words, f"{command} --seeds {' '.join(map(str, more))}")


def after_diagnosis(
    decision: Decision, run_dir: str, recipe: Mapping[str, Any], asked: Mapping[str, Any], prompts: int
) -> Next:
    """Of a diagnosis.

    Args:
        decision: what was advised.
        run_dir: folder of the SFT run.
        recipe: what SFT was made with, and its model as `sft`.
        asked: what says which answers are right: `verifier`, or `judge` and how it is asked; and the rows that were
            asked as `dataset_name` and its split, where they are not the run's own.
        prompts: how many of them were asked.
    """
    base, rows = recipe.get("model_name_or_path") or BEFORE, recipe.get("dataset_name") or ROWS
    sft, own = recipe.get("sft") or SFT, ("dataset_name", "dataset_train_split")
    prompted = {name: asked[name] for name in own if asked.get(name) not in (None, "train")}
    checks = {name: value for name, value in asked.items() if name not in own}
    adapter = {"use_peft": True if recipe.get("use_peft") else None}
    if decision.answer is Answer.CANDIDATE:
        arms = ["base", "sft", "continued_sft", "dpr_capped"] if decision.capped else None
        held_out = OTHER if prompted else None  # the rows that chose the reference are no test of it
        names = {"sft_from": run_dir, "model_name_or_path": base, "dataset_name": rows, "eval_dataset_name": held_out}
        names |= {**checks, **adapter, "arms": arms}
        found = {"reference": decision.reference, "beta": decision.beta, "output_dir": f"{run_dir}-dpr"}
        return Next("does DPR beat its control?", typed("run", **names, **found))
    if decision.answer is Answer.NONE:
        names = {"model_name_or_path": sft, "ref_model_name_or_path": base, "dataset_name": rows, **checks, **adapter}
        words = "other demonstrations, or the better part of these: the reward sorts them, and SFT goes on with it."
        return Next(words, typed("purify", **names, output_dir=f"{run_dir}-purified"))
    if decision.answer is Answer.TRAIN_ON:
        longer = typed("sft", model_name_or_path=sft, dataset_name=rows, **adapter, output_dir=f"{run_dir}-longer")
        return Next("let SFT go on, then diagnose again.", longer)
    again = {"run_dir": run_dir, **prompted}
    if not any(checks.values()):
        words = "let a judge, or a program (--verifier), say which answers are right."
        return Next(words, typed("diagnose", **again, judge=JUDGE))
    return Next("ask more prompts.", typed("diagnose", **again, **checks, max_samples=_MORE_PROMPTS * prompts))


def after_purification(record: Purification, folder: str, facts: Mapping[str, str]) -> Next:
    """Of a purification: held-out prompts where a model was trained, else a look at the rows.

    Args:
        record: what was found.
        folder: where the model is.
        facts: the models, the demonstrations, the verifier and the judge, as the page calls them.
    """
    facts = {name: value for name, value in facts.items() if value != "none"}
    sft, rows = facts.get("SFT model") or SFT, facts.get("demonstrations") or ROWS
    if not record.trained:
        before = facts.get("before SFT") or BEFORE
        look = typed("audit", model_name_or_path=sft, ref_model_name_or_path=before, dataset_name=rows)
        return Next("keep the SFT model, and read the rows that it finds least like expert behaviour.", look)
    words = "read the rows that were set aside, then ask held-out prompts. It has to beat continued SFT as well."
    model = f"{folder}/model"
    if "verifier" in facts:
        return Next(words, typed("eval", model_name_or_path=model, dataset_name=PROMPTS, verifier=facts["verifier"]))
    judge = facts.get("judge", JUDGE)
    return Next(words, typed("judge", benchmark=PROMPTS, models=model, baseline=sft, judge=judge))


def after_view(facts: Sequence[tuple[str, str]] = ()) -> Next:
    """Of scored rows: those of a whole data set that the reward finds worst."""
    return Next("which rows of a data set does the reward find worst, and which are flagged?", _audit(dict(facts)))


def after_audit(facts: Sequence[tuple[str, str]]) -> Next:
    """Of an audit: the rows without those that are flagged, for another SFT."""
    words = (
        "leave out what repeats another row, and train on the rest with densepath sft; drop what is flagged cut off "
        "only where you have read it, since whole answers that end without a full stop are flagged too."
    )
    return Next(words, f"{_audit(dict(facts))} --drop duplicate --clean_file clean.jsonl")


def _audit(facts: Mapping[str, str]) -> str:
    names = {"model_name_or_path": facts.get("SFT model") or SFT}
    refs = [each for each in facts.get("reference", BEFORE).split(", ") if each != "none"]
    rows = facts.get("file", ROWS) if "SFT model" in facts else ROWS
    said = {
        "dense_reward": facts.get("reward", "baseline_relative"),
        "aggregation": facts.get("worst first by", "min").partition(" ")[0],
        "max_length": facts.get("max_length"),
    }
    changed = {name: value for name, value in said.items() if value not in ("baseline_relative", "min")}
    return typed("audit", **names, ref_model_name_or_path=refs, dataset_name=rows, **changed)


def after_reward_eval(sft: str, refs: Sequence[str]) -> Next:
    """Of the reward's agreement with labels."""
    look = typed("audit", model_name_or_path=sft, ref_model_name_or_path=list(refs), dataset_name=ROWS)
    return Next("where it beats its baselines, let it find the odd rows of your data.", look)


def after_judging(report: JudgeReport) -> Next:
    """Of judged answers: whether to believe the judge."""
    judged = report.judged
    judge = _judge(judged.judge)
    if not judged.win_rates:
        sources = list(report.models.values())
        pair = typed("judge", benchmark=report.source, models=sources, baseline="OTHER-MODEL", judge=judge)
        return Next("compare the models pair by pair, prompt by prompt.", pair)
    tie = all(rate.verdict is Verdict.TIE for rate in judged.win_rates)
    words = "more prompts, or a better judge: how good is this one?" if tie else "how good is this judge?"
    return Next(words, typed("judge-eval", judge=judge, dataset_name=PAIRS))


def after_judge_eval(found: JudgeEvaluation, source: str) -> Next:
    """Of a judge: a benchmark, or another look at it."""
    judge = _judge(found.judge)
    if found.headline is None:
        words = "another judge (below), another template or more pairs, before you believe a figure of this one."
        return Next(words, typed("judge-eval", judge="local:OTHER-JUDGE", dataset_name=source))
    use = typed("judge", benchmark=PROMPTS, models=OWN, baseline=SFT, judge=judge)
    return Next("judge with it; its verdicts are worth what this page says of them.", use)


def after_profile(folder: str) -> Next:
    """Of a training whose steps were timed: whether it was worth them."""
    words = "time says nothing of quality: compare the trained model with the SFT model."
    return Next(words, typed("judge", benchmark=PROMPTS, models=f"{folder}/model", baseline=SFT, judge=JUDGE))


def after_theory() -> Next:
    """Of the statements: more instances of one."""
    words = "docs/theory.md proves each statement; this checks one of them on more instances."
    return Next(words, typed("theory", only=5, instances=100))


def _judge(name: str) -> str:
    found = _JUDGE_NAME.fullmatch(name)
    return found[1] if found else JUDGE
