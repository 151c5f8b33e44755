"""The run folder: whose it is, who works in it, and what stays when the user or the disk stops a run."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from tests.pipeline.fork_server import NO_MOUNT
from tests.pipeline.runs import assert_same_run, leftovers, run_argv, wait_for

from densepath.cli.main import main
from densepath.errors import ResumeError
from densepath.pipeline.run_folder import RunFolder


@pytest.fixture
def again(finished, tmp_path):
    """A copy of the finished run, and the command that made it with another output_dir and further words."""
    source, argv = finished
    folder = tmp_path / "again"
    shutil.copytree(source, folder)

    def command(*words: str) -> list[str]:
        return [*argv, "--output_dir", str(folder), *words]

    return folder, command


@pytest.fixture(autouse=True)
def _same_number_of_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def times(folder: Path) -> dict[Path, int]:
    """When each file was written, but for the report, which is made again at each call."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("report."))
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize(
    ("words", "difference"),
    [
        (["--seed", "1"], "(seed: 0 -> 1)"),
        (["--reference", "auto"], "(reference: '0.5' -> 'auto')"),
        (["--sft_weight_decay", "0.1"], "(sft_weight_decay: None -> 0.1)"),
        (["--beta", "0.7", "--max_train_samples", "17"], "(beta: 'auto' -> '0.7'; max_train_samples: 18 -> 17)"),
        (["--eval_temperatures", "0"], "(eval_temperatures: [0.0, 1.0] -> [0.0])"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(again, capsys, words, difference):
    folder, command = again
    before = times(folder)
    assert main(command(*words)) == 2
    out, err = capsys.readouterr()
    assert out.count("\n") <= 1  # what runs on what, and into which folder
    assert err.count("\n") == 1
    assert f"{folder} holds a run with another configuration {difference}: undo the change" in err
    assert f"({folder / 'config.yaml'} says what it was made with)" in err
    assert "another output_dir" in err
    assert times(folder) == before


def test_a_number_written_in_another_way_is_the_same_configuration(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "model").mkdir()
    run.open_config({"reference": "0.50", "beta": "1.0"})
    for reference, beta in (("0.5", "1"), ("0.50", "1e0"), (".5", "1.00")):
        run.open_config({"reference": reference, "beta": beta})
    for reference, beta in (("0.5", "auto"), ("ema", "1"), ("0.25", "1")):
        with pytest.raises(ResumeError, match="another configuration"):
            run.open_config({"reference": reference, "beta": beta})
    run.close()


def test_a_folder_goes_on_without_keys_that_no_rounds_of_purification_read(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "model").mkdir()
    run.open_config({"purify_rounds": 0, "purify_keep": 0.3, "purify_steps": 9, "purify_final_steps": 2})
    run.open_config({"purify_rounds": 0, "purify_keep": 0.5, "purify_steps": 8, "purify_final_steps": 2})
    for changed in ({"purify_final_steps": 3}, {"purify_rounds": 1}):
        with pytest.raises(ResumeError, match="another configuration"):
            run.open_config({"purify_rounds": 0, "purify_keep": 0.5, "purify_final_steps": 2, **changed})
    run.close()


def test_a_key_that_decides_nothing_in_a_folder_may_change(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "model").mkdir()
    run.open_config({"seed": 1, "sft_push_to_hub": False, "arms": ["sft"]})
    run.open_config({"seed": 1, "push_to_hub": True, "hub_model_id": "mine", "dpr_push_to_hub": True}, {"arms"})
    with pytest.raises(ResumeError, match=r"arms: .* -> None"):
        run.open_config({"seed": 1})
    run.close()


def test_a_finished_run_is_shown_again_without_work(again, capsys):
    folder, command = again
    before = times(folder)
    (folder / "report.html").unlink()
    # The same values written in another way are the same configuration, and threads change no result.
    assert main(command("--num_threads", "1", "--sft_max_steps", "8.0", "--reference=0.5")) == 0
    out, _ = capsys.readouterr()
    assert "exact_match" in out
    assert [line for line in out.splitlines() if line.startswith("DPR ")]
    assert "2/7 SFT: " not in out  # no stage printed its steps
    assert times(folder) == before
    assert (folder / "report.html").exists()


def test_a_second_process_is_refused(tmp_path, tiny_model, forks, capsys):
    argv, waiting = run_argv(tiny_model, tmp_path / "run"), tmp_path / "waiting"
    hook = {"target": "densepath.pipeline.cells:run_sft", "action": "wait", "touch": str(waiting)}
    pid = forks.start(argv, hook=hook)
    wait_for(waiting)
    assert main(argv) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "another densepath process works in this run folder" in err
    os.kill(pid, signal.SIGKILL)
    assert forks.wait() == -9
    # The lock dies with its process.
    assert forks.run(argv, hook={"target": "densepath.pipeline.cells:run_sft"}) == -9


INTERRUPTS = {
    "data": {"target": "densepath.pipeline.data:write_jsonl_atomic", "call": 2},
    "SFT": {"target": "transformers.trainer:Trainer.training_step", "call": 4},
    "an SFT checkpoint": {"target": "transformers.trainer:Trainer._save_optimizer_and_scheduler"},
    "selection": {"target": "densepath.choice.measure:generate_each", "call": 2},
    "DPR": {"target": "densepath.trainers.dpr:sample", "call": 4},
    "evaluation": {"target": "densepath.pipeline.evaluation:generate_each", "call": 2},
}


def test_ctrl_c_in_every_stage(tmp_path, finished, forks):
    whole, argv = finished
    folder = tmp_path / "run"
    argv = [*argv, "--output_dir", str(folder)]
    for stage, place in INTERRUPTS.items():
        waiting = tmp_path / stage
        pid = forks.start(argv, hook={**place, "action": "wait", "touch": str(waiting)})
        wait_for(waiting)
        os.kill(pid, signal.SIGINT)
        assert forks.wait() == 130, stage
        assert forks.stderr.strip() == (
            "densepath: interrupted; what was written is whole, and the same command goes on"
        )
        assert [name for name in leftovers(folder) if name.endswith(".tmp")] == []
    assert forks.run(argv) == 0
    assert_same_run(folder, whole)


def test_a_disk_that_is_full_again_and_again(tmp_path, finished, forks):
    """A run on a disk too small for it; each time some more space is made, and the same command given."""
    whole, argv = finished
    disk = tmp_path / "disk"
    disk.mkdir()
    sizes = [8, 60, 350, 800, 1400, 2100, 2800, 3500, 100_000]
    code = forks.run([*argv, "--output_dir", str(disk / "run")], disk={"path": str(disk), "sizes": sizes})
    if code == NO_MOUNT:
        pytest.skip("this machine does not let a process mount a file system of its own")
    assert code == 0, forks.stderr
    ends = [json.loads(line.removeprefix("RUN ")) for line in forks.stdout.splitlines() if line.startswith("RUN ")]
    assert [end["code"] for end in ends] == [1] * (len(ends) - 1) + [0]
    assert len(ends) >= 5
    for end in ends[:-1]:
        said = forks.stderr.encode()[slice(*end["stderr"])].decode()
        assert said.count("\n") == 1, said
        assert "No space left on device" in said or "disk is full" in said
        assert "cannot write" in said
    assert_same_run(tmp_path / "result" / "run", whole)
    assert leftovers(tmp_path / "result" / "run") == []
