"""Every page ends with a command that can be typed: it exists, and takes these arguments."""

from __future__ import annotations

import dataclasses
import shlex
from types import SimpleNamespace

import pytest
from tests.report.conftest import RESULTS, results

from densepath.cli.arguments import parse
from densepath.cli.commands import ROWS, _named
from densepath.cli.main import COMMANDS
from densepath.config.experiment import ExperimentArguments
from densepath.records.behaviours import Purification
from densepath.records.choice import Answer, Decision
from densepath.records.codec import from_json
from densepath.records.estimates import Verdict
from densepath.records.results import Results
from densepath.report import next_step
from densepath.report.console import parts_text
from densepath.report.document import Document, Next
from densepath.report.html import part_html
from densepath.report.markdown import part_markdown
from densepath.report.records import Report

RECIPE = {"model_name_or_path": "base", "dataset_name": "rows of mine.jsonl", "use_peft": True, "sft": "s/m"}
ASKED = {"dataset_name": "held out.jsonl", "dataset_train_split": "validation", "verifier": "exact_match"}
FACTS = {"SFT model": "sft", "before SFT": "base", "demonstrations": "rows.jsonl", "verifier": "exact_match"}


def run(kind, given=None, **fields):
    config = {"output_dir": "runs/mine", "seed": 3, "verifier": "exact_match", **(given or {})}
    report = Report(run="mine", model=None, date=None, version=None, made_by="0", config=config, **fields)
    return next_step.after_run(report, kind)


def diagnosis(answer, **fields):
    found = Decision(answer, fields.pop("reference", None), fields.pop("beta", None), (), **fields)
    return next_step.after_diagnosis(found, "runs/sft", RECIPE, ASKED, 64)


def judged(**fields):
    values = {"judge": "local:a/judge (letters)", "win_rates": (), **fields}
    return SimpleNamespace(judged=SimpleNamespace(**values), source="mt_bench", models={"m": "runs/m", "n": "runs/n"})


def purification(facts=FACTS, **fields):
    record = Purification((), None, None, "", 1, 1, **fields)
    return next_step.after_purification(record, "purified", facts)


STEPS = {
    **{f"run, {kind}": run(kind) for kind in ("better", "unknown", "none-helps", "tie")},
    "run, unchecked": run("unchecked", results=from_json(Results, RESULTS)),
    "experiment": next_step.after_experiment(from_json(Results, RESULTS)),
    "diagnosis, candidate": diagnosis(Answer.CANDIDATE, reference="0.5", beta=0.5),
    "diagnosis, capped": diagnosis(Answer.CANDIDATE, reference="0", beta=1.0, capped=True),
    **{f"diagnosis, {each.value}": diagnosis(each) for each in Answer if each is not Answer.CANDIDATE},
    "diagnosis, unchecked": next_step.after_diagnosis(Decision(Answer.CANNOT_TELL, None, None, ()), "s", {}, {}, 8),
    "run, tie, SFT of another run": run("tie", {"sft_from": "runs/sft"}),
    "run, tie, given SFT": run("tie", {"sft_model_name_or_path": "org/sft"}),
    "run, unchecked, SFT of another run": run("unchecked", {"sft_from": "s"}, results=from_json(Results, RESULTS)),
    "run, unchecked, given SFT": run(
        "unchecked", {"sft_model_name_or_path": "org/sft"}, results=from_json(Results, RESULTS)
    ),
    "purification": purification(),
    "purification, judged": purification({**FACTS, "verifier": "none", "judge": "openai:mine"}),
    "purification, unchecked": purification({**FACTS, "verifier": "none", "judge": "none"}),
    "purification, kept": purification(trained=False),
    "scores": next_step.after_view(),
    "audit": next_step.after_audit([("file", "my rows.jsonl"), ("SFT model", "sft"), ("reference", "a, b")]),
    "audit, otherwise": next_step.after_audit(
        [
            *(("file", "rows"), ("SFT model", "sft"), ("reference", "none"), ("reward", "logprob")),
            *(("worst first by", "mean of the reward"), ("max_length", "192")),
        ]
    ),
    "reward-eval": next_step.after_reward_eval("sft", ["a", "b"]),
    "judge, graded": next_step.after_judging(judged()),
    "judge, tie": next_step.after_judging(judged(win_rates=(SimpleNamespace(verdict=Verdict.TIE),))),
    "judge, better": next_step.after_judging(judged(win_rates=(SimpleNamespace(verdict=Verdict.BETTER),))),
    "judge-eval": next_step.after_judge_eval(SimpleNamespace(judge="my judge", headline="good"), "pairs.jsonl"),
    "judge-eval, chance": next_step.after_judge_eval(SimpleNamespace(judge="my judge", headline=None), "pairs.jsonl"),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_command_can_be_typed(name):
    program, command, *words = shlex.split(STEPS[name].command)
    assert program == "densepath"
    assert command in COMMANDS
    if command == "experiment":
        kind, taken = ExperimentArguments, {}
    else:
        kind, taken = _named(f"config.{ROWS[command].arguments}"), ROWS[command].passthrough
    known = {field.name for field in dataclasses.fields(kind)} | {"config"}
    assert {word[2:] for word in words if word.startswith("--")} <= known
    if "--config" not in words:  # a recipe that is not there cannot be read
        parse(kind, words, prog="", description="", passthrough=taken)


def test_names_that_the_page_knows_are_in_the_command():
    assert STEPS["purification"].command.endswith("--dataset_name PROMPTS.jsonl --verifier exact_match")
    assert STEPS["purification, judged"].command.endswith("--baseline sft --judge openai:mine")
    assert STEPS["purification, unchecked"].command.endswith("--baseline sft --judge local:JUDGE")
    assert STEPS["run, better"].command == (
        "densepath run --config runs/mine/config.yaml --seed 4 --output_dir runs/mine-seed-4"
    )
    assert "--models runs/mine/dpr/model --baseline runs/mine/sft/model" in STEPS["run, unchecked"].command
    assert "--dataset_name 'rows of mine.jsonl' --eval_dataset_name" in STEPS["diagnosis, candidate"].command
    assert "--reference 0.5 --beta 0.5" in STEPS["diagnosis, candidate"].command
    assert "dpr_capped" in STEPS["diagnosis, capped"].command
    asked = "--dataset_name 'held out.jsonl' --dataset_train_split validation"
    more = f"--run_dir runs/sft {asked} --verifier exact_match --max_samples 256"
    assert STEPS["diagnosis, cannot_tell"].command == f"densepath diagnose {more}"
    # prompts that chose the reference are no test of it
    assert "--eval_dataset_name OTHER-PROMPTS.jsonl --verifier" in STEPS["diagnosis, candidate"].command
    for answer in ("candidate", "none", "train_on"):
        assert "--use_peft true" in STEPS[f"diagnosis, {answer}"].command
    assert "--verifier exact_match" in STEPS["diagnosis, none"].command
    assert STEPS["run, tie, SFT of another run"].command == (
        "densepath diagnose --run_dir runs/sft --dataset_name runs/mine/data/validation.jsonl --verifier exact_match"
    )
    assert "diagnose" not in STEPS["run, tie, given SFT"].command  # it asks a folder that SFT left
    assert "--baseline s/model" in STEPS["run, unchecked, SFT of another run"].command
    assert "--baseline org/sft" in STEPS["run, unchecked, given SFT"].command
    assert "--judge local:JUDGE" in STEPS["diagnosis, unchecked"].command
    assert "--ref_model_name_or_path a b --dataset_name 'my rows.jsonl' --drop" in STEPS["audit"].command
    assert " --dense_reward logprob --aggregation mean --max_length 192 --drop" in STEPS["audit, otherwise"].command
    assert "--judge local:a/judge" in STEPS["judge, tie"].command
    assert next_step.after_theory().command == "densepath theory --only 5 --instances 100"


def test_an_experiment_is_gone_on_with_by_more_seeds():
    seeds = results({"sft": 90, "dpr": 135})
    seeds["info"]["command"] = "densepath experiment --config recipes/mine.yaml"
    found = next_step.after_experiment(from_json(Results, seeds))
    assert found.command == "densepath experiment --config recipes/mine.yaml --seeds 0 1 2"
    assert found.text.startswith("a method is better")


def test_a_page_without_a_next_step_cannot_be_made():
    (field,) = (each for each in dataclasses.fields(Document) if each.name == "next")
    assert field.default is dataclasses.MISSING


def test_it_is_shown_on_pages_in_terminals_and_in_markdown():
    step = Next("look & see.", "densepath view 'a <b>.jsonl'")
    assert "<strong>What next: </strong>look &amp; see." in part_html(step)
    assert "<pre><code>densepath view &#39;a &lt;b&gt;.jsonl&#39;</code></pre>" in part_html(step)
    assert "    densepath view 'a <b>.jsonl'" in part_markdown(step)
    assert [text.plain for text in parts_text([step]).renderables[0].renderables][1].strip() == step.command
