"""Files that were damaged after they were written: made again, set aside, or named with the remedy; never used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.pipeline.runs import assert_same_run, checkpoint_steps, run_argv

from densepath.errors import DamagedFileError
from densepath.io import read_json
from densepath.trainers.callbacks import checkpoint_damage, last_complete_checkpoint


def halved(path: Path) -> None:
    held = path.read_bytes()
    path.write_bytes(held[: len(held) // 2])


def bit(path: Path) -> None:
    held = path.read_bytes()
    path.write_bytes(held[:-3] + bytes([held[-3] ^ 1]) + held[-2:])


def digit(path: Path) -> None:
    """Another digit in a number: it stays JSON, of the same form."""
    held = path.read_text()
    found = re.search(r'"(?:tokens|rows)": (\d)', held)
    assert found is not None, held
    at = found.start(1)
    path.write_text(held[:at] + str((int(held[at]) + 1) % 10) + held[at + 1 :])


@pytest.fixture
def damaged(finished, tmp_path, forks):
    """Damage a file of a copy of the finished run, and give the command again; its exit code and what it said."""
    source, argv = finished
    folder = tmp_path / "run"
    shutil.copytree(source, folder)

    def run(name: str, damage) -> tuple[int, str]:
        damage(folder / name)
        return forks.run([*argv, "--output_dir", str(folder)]), forks.stderr

    return folder, run


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("data/test.jsonl", halved),
        ("results.json", bit),
        ("dpr/eval/test-1.json", bit),
        ("dpr/eval/test-1.jsonl", Path.unlink),
    ],
)
def test_what_costs_no_training_is_made_again_and_said(damaged, finished, name, damage):
    folder, run = damaged
    code, said = run(name, damage)
    assert code == 0, said
    assert f"{folder / name}: not what the stage " in said
    assert_same_run(folder, finished[0])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("sft/model/model.safetensors", bit, "not what the stage sft wrote: put a whole copy in its place, or remove"),
        ("dpr/model/config.json", halved, "not what the stage train wrote"),
        ("stages/sft.json", halved, "is damaged, it is no JSON"),
        ("stages/sft.json", digit, "is damaged, it is not what was written"),
        ("config.yaml", lambda path: path.write_bytes(b"\xff"), "is no UTF-8"),
    ],
)
def test_what_cost_a_training_is_named_with_the_remedy(damaged, name, damage, message):
    folder, run = damaged
    code, said = run(name, damage)
    assert (code in (1, 2), said.count("\n")) == (True, 1), said
    assert f"densepath: error: {folder / name}" in said
    assert message in said


def test_rows_whose_source_has_changed_are_not_made_again(tmp_path, tiny_model, forks):
    rows = [{"prompt": f"Say {i}:", "completion": f"{i}", "answer": f"{i}"} for i in range(60)]
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = run_argv(tiny_model, folder, dataset_name=data)
    assert forks.run(argv, hook={"target": "densepath.pipeline.cells:run_selection"}) == -9, forks.stderr
    halved(folder / "data/test.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows[::-1][:58]))
    assert forks.run(argv) == 2
    assert "stored rows are damaged, and their source gives others now" in forks.stderr


def test_a_damaged_checkpoint_is_set_aside_and_the_older_one_taken(tmp_path, finished, forks):
    whole, argv = finished
    folder = tmp_path / "run"
    argv = [*argv, "--output_dir", str(folder)]
    hook = {"target": "transformers.trainer:Trainer.training_step", "call": 6}
    assert forks.run(argv, hook=hook) == -9
    assert checkpoint_steps(folder / "sft") == [2, 4]
    newest = folder / "sft/checkpoint-4"
    for name, how, said in (
        ("optimizer.pt", Path.unlink, "the optimizer's state is missing"),
        ("model.safetensors", halved, "model.safetensors: not what was written"),
        ("trainer_state.json", bit, "trainer_state.json: not what was written"),
        ("densepath_complete.json", halved, "densepath_complete.json cannot be read"),
    ):
        held = (newest / name).read_bytes()
        how(newest / name)
        assert checkpoint_damage(newest) == said
        (newest / name).write_bytes(held)
    # what was written before the checkpoint is not made again
    for name in ("metrics.jsonl", "references/0.25/config.json"):
        path = folder / "sft" / name
        held = path.read_bytes()
        halved(path)
        assert forks.run(argv) == 1
        assert f"error: {path}: not what was written: put a whole copy in its place" in forks.stderr
        path.write_bytes(held)
    with (folder / "sft/metrics.jsonl").open("ab") as log:
        log.write(bytes(40) + b"\n{}\n")  # what a power cut leaves of lines that nobody synced
    halved(newest / "optimizer.pt")
    assert forks.run(argv, hook={"target": "densepath.pipeline.evaluation:generate_each", "call": 2}) == -9
    assert f"{newest} is damaged (optimizer.pt: not what was written): it is set aside as damaged-" in forks.stderr
    part = next(folder.glob("*/eval/*.json"))  # of an evaluation that is half done
    bit(part)
    assert forks.run(argv) == 0, forks.stderr
    assert f"{part}, or the .jsonl beside it: not what was written: it is made again" in forks.stderr
    assert not list((folder / "sft").glob("*checkpoint-*"))  # gone with the others once SFT was done
    assert_same_run(folder, whole)


def test_a_checkpoint_without_its_state_is_none(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3/densepath_complete.json").write_text('{"step": 3}')
    with pytest.warns(UserWarning, match=r"the trainer's state, the optimizer's state, .* is missing"):
        assert last_complete_checkpoint(tmp_path) is None
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DamagedFileError, match="remove it and run the same command again"):
        read_json(tmp_path / "x.json")
