"""kill -9 in the middle of every stage, with the power cut, and the same command again: as if nothing had happened."""

from __future__ import annotations

import json
import time

import pytest
import torch
from tests.pipeline.runs import assert_same_run, checkpoint_steps, leftovers, run_argv, steps, weights
from tests.power import cut

from densepath.pipeline.run_folder import RunFolder

STEP = "transformers.trainer:Trainer.training_step"
OPTIMIZER = "transformers.trainer:Trainer._save_optimizer_and_scheduler"
MARKER = "densepath.trainers.callbacks:CompleteCheckpointCallback.on_save"
LOG = "densepath.trainers.callbacks:MetricsCallback.on_log"
SAVE = "densepath.trainers.sft:save_model"
FINISH = "densepath.pipeline.run_folder:RunFolder.finish"
TIDY = "densepath.pipeline.run_folder:remove"

# What is cut short, where the process is killed, and the checkpoints that are there then, in the order of a run. The
# folder is the same all along, so every kill but the first hits a process that was itself resumed.
# With 18 rows, batches of 4 and accumulation over 2, SFT's 8 steps are 2, 2, 1, 2, 2, 1, 2, 2 batches.
FULL = [
    ("the configuration, before it has its name", {"target": "densepath.io:os.fsync"}, {}),
    ("data, between two files", {"target": "densepath.pipeline.data:write_jsonl_atomic", "call": 2}, {}),
    ("data, before it is called done", {"target": FINISH}, {}),
    ("SFT, step 2 of 8", {"target": STEP, "call": 3}, {}),
    ("SFT, step 4 of 8", {"target": STEP, "call": 6, "when": "after"}, {"sft": [2]}),
    ("SFT, a checkpoint without its optimizer", {"target": OPTIMIZER}, {"sft": [2, 4]}),
    ("SFT, a checkpoint without its marker", {"target": MARKER, "call": 2}, {"sft": [4, 6]}),
    ("SFT, a reference without its name", {"target": SAVE, "when": "after"}, {"sft": [4]}),
    ("SFT, steps that were logged and not saved", {"target": LOG, "call": 2, "when": "after"}, {"sft": [4]}),
    ("SFT, the final model without its name", {"target": SAVE, "call": 2, "when": "after"}, {"sft": [4, 6]}),
    ("SFT, before it is called done", {"target": FINISH}, {"sft": [4, 6]}),
    ("SFT, removal of its checkpoints", {"target": TIDY, "when": "after"}, {"sft": [6]}),
    ("selection, the first preview", {"target": "densepath.choice.measure:generate_each", "call": 2}, {}),
    ("selection, before it is called done", {"target": FINISH}, {}),
    ("SFT, its evaluation, second part", {"target": "densepath.pipeline.evaluation:generate_each", "call": 4}, {}),
    ("DPR, third sampling", {"target": "densepath.trainers.dpr:sample", "call": 3, "when": "after"}, {"dpr": [2]}),
    ("DPR, a checkpoint without its optimizer", {"target": OPTIMIZER}, {"dpr": [2, 4]}),
    ("DPR, a checkpoint without its marker", {"target": MARKER, "call": 1}, {"dpr": [2, 4]}),
    ("DPR, step 6 of 7", {"target": STEP, "call": 4}, {"dpr": [2, 4]}),
    ("DPR, the final model without its name", {"target": SAVE, "when": "after"}, {"dpr": [4, 6]}),
    ("DPR, before it is called done", {"target": FINISH}, {"dpr": [4, 6]}),
    ("DPR, its evaluation, second part", {"target": "densepath.pipeline.evaluation:generate_each", "call": 2}, {}),
    ("DPR, its completions", {"target": "densepath.pipeline.evaluation:write_jsonl_atomic"}, {}),
    ("continued SFT, step 3", {"target": STEP, "call": 5}, {"continued_sft": [2]}),
    ("continued SFT, the final model without its name", {"target": SAVE, "when": "after"}, {"continued_sft": [2]}),
    ("continued SFT, its evaluation", {"target": "densepath.pipeline.evaluation:generate_each", "call": 2}, {}),
    ("results", {"target": "densepath.pipeline.run:grid_results"}, {}),
    ("samples", {"target": "densepath.pipeline.run:write_jsonl_atomic"}, {}),
    ("report, between its two files", {"target": "densepath.report.build:write_text_atomic"}, {}),
]
ADAPTER = [
    ("SFT, step 4 of 8", {"target": STEP, "call": 4}, {"sft": [2]}),
    ("SFT, a checkpoint without its optimizer", {"target": OPTIMIZER}, {"sft": [2, 4]}),
    ("SFT, before it is called done", {"target": FINISH}, {"sft": [4, 6]}),
    ("DPR, step 4 of 7, after SFT's last two", {"target": STEP, "call": 6}, {"dpr": [2]}),
    ("DPR, a checkpoint without its marker", {"target": MARKER}, {"dpr": [2, 4]}),
    ("DPR, before it is called done", {"target": FINISH}, {"dpr": [4, 6]}),
    ("continued SFT, step 3, after DPR's last", {"target": STEP, "call": 4}, {"continued_sft": [2]}),
    ("evaluation, second part", {"target": "densepath.pipeline.evaluation:generate_each", "call": 2}, {}),
]


@pytest.mark.parametrize(
    ("kills", "changes"),
    [
        pytest.param(FULL, {"sft_gradient_accumulation_steps": 2}, id="all weights"),
        pytest.param(
            ADAPTER,
            {"use_peft": "true", "lora_r": 4, "dpr_num_iterations": 2},
            id="adapter",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_killed_in_every_stage_equals_uninterrupted(tmp_path, tiny_model, forks, kills, changes):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert forks.run(run_argv(tiny_model, whole, **changes)) == 0, forks.stderr
    assert leftovers(whole) == []
    argv, power = run_argv(tiny_model, killed, **changes), [tmp_path / "journal", tmp_path / "shadow"]
    for what, hook, checkpoints in kills:
        code = forks.run(argv, hook=hook, power=[str(each) for each in power])
        assert code == -9, f"{what}: not reached\n{forks.stdout}\n{forks.stderr}"
        there = {stage: checkpoint_steps(killed / stage) for stage in ("sft", "dpr", "continued_sft")}
        assert {stage: found for stage, found in there.items() if found} == checkpoints, what
        cut(killed, *power)
    assert forks.run(argv) == 0, forks.stderr
    assert_same_run(killed, whole)
    assert leftovers(killed) == []
    assert (killed / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(("stage", "log"), [("sft", "sft"), ("train", "."), ("train", "behaviours-2/0/1")])
def test_the_seconds_of_a_training_are_those_of_all_its_processes(tmp_path, monkeypatch, stage, log):
    """Killed 40 s and 7 s after their begin by the clock of their logs, and once before a line; hours lie between."""
    path = tmp_path / log / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    for begin, lines in ((0.0, [5.0, 40.0]), (9000.0, [1.0, 7.0]), (20000.0, []), (30000.0, [])):
        monkeypatch.setattr(time, "time", lambda begin=begin: begin)
        run = RunFolder(tmp_path)
        started = run.begin(stage)
        with path.open("a") as file:
            file.write("".join(json.dumps({"step": 1, "time": begin + seconds}) + "\n" for seconds in lines))
        if begin == 30000.0:
            run.finish(stage, started)
        run.close()
    assert RunFolder(tmp_path, read_only=True).outcome(stage).budget.seconds == pytest.approx(47, abs=1)
    assert not list((tmp_path / "stages").glob("*.clock"))


@pytest.mark.slow
def test_the_stages_on_their_own_go_on_as_well(tmp_path, tiny_model, forks):
    """`densepath sft`, then `densepath dpr` from its model and one of its references."""

    def sft(folder):
        words = ["sft", "--model_name_or_path", tiny_model, "--dataset_name", "text_tasks", "--max_steps", "5"]
        words += ["--output_dir", folder, "--per_device_train_batch_size", "3", "--reference_fractions", "0.4"]
        return [*words, "--max_train_samples", "10", "--save_steps", "2", "--learning_rate", "1e-3"]

    def dpr(folder, start):
        words = ["dpr", "--model_name_or_path", start / "model", "--ref_model_name_or_path", start / "references/0.4"]
        words += ["--dataset_name", "text_tasks", "--output_dir", folder, "--max_train_samples", "9"]
        words += ["--max_steps", "5", "--save_steps", "2"]
        words += ["--per_device_train_batch_size", "4", "--num_generations", "2", "--max_completion_length", "5"]
        return [*words, "--learning_rate", "1e-3"]

    start = tmp_path / "sft-whole"
    kills = [
        ({"target": STEP, "call": 4}, [2]),
        ({"target": OPTIMIZER}, [2, 4]),
        ({"target": SAVE, "when": "after"}, [2, 4]),
        ({"target": TIDY}, [2, 4]),  # the model has its name, and its checkpoints are not removed yet
    ]
    for name, command in (("sft", sft), ("dpr", lambda folder: dpr(folder, start))):
        whole, killed = tmp_path / f"{name}-whole", tmp_path / f"{name}-killed"
        assert forks.run(command(whole)) == 0, forks.stderr
        for hook, checkpoints in kills:
            assert forks.run(command(killed), hook=hook) == -9, forks.stderr
            assert checkpoint_steps(killed) == checkpoints
        assert forks.run(command(killed)) == 0, forks.stderr
        assert leftovers(killed) == []
        for folder in ("model", "references/0.4") if name == "sft" else ("model",):
            ours, theirs = weights(killed / folder), weights(whole / folder)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert steps(killed, "") == steps(whole, "")
