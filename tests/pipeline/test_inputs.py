"""A training goes on with what it began with, or is refused with the difference shown."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pipeline.runs import checkpoint_steps, run_argv, save_tiny_model, weights
from tests.support import CHATML
from transformers import TrainingArguments

from densepath.cli.main import main
from densepath.errors import ConfigError, ModelError, StorageError
from densepath.io import read_sealed_json, write_sealed_json
from densepath.models.kept import kept_models
from densepath.pipeline.inputs import is_kept

COMMON = ["--max_steps", "3", "--save_steps", "1", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2"]


def rows(word: str, count: int = 8) -> str:
    return "".join(json.dumps({"prompt": f"Say {i}:", "completion": f" {i} {word}"}) + "\n" for i in range(count))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models `base`, `sft` and `other`, and rows of the same prompts with two kinds of answers."""
    for seed, name in enumerate(("base", "sft", "other")):
        save_tiny_model(tmp_path / name, seed=seed)
    (tmp_path / "rows.jsonl").write_text(rows("cat"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sft(folder: str) -> list[str]:
    words = ["sft", "--model_name_or_path", "base", "--dataset_name", "rows.jsonl", "--output_dir", folder]
    return [*words, *COMMON, "--reference_fractions", "0.5"]


def dpr(folder: str) -> list[str]:
    words = ["dpr", "--model_name_or_path", "sft", "--ref_model_name_or_path", "base", "--dataset_name", "rows.jsonl"]
    return [*words, "--output_dir", folder, *COMMON, "--num_generations", "2", "--max_completion_length", "4"]


def cut_short(argv: list[str]) -> None:
    """The command as far as its last checkpoint: the model is not written."""

    def fails(*args: Any) -> None:
        raise StorageError("cut short")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("densepath.pipeline.standalone.save_model_atomic", fails)
        assert main(argv) != 0


def change_rows() -> None:
    Path("rows.jsonl").write_text(rows("dog", 7))


def change_prompts() -> None:
    Path("rows.jsonl").write_text(rows("cat").replace("Say 3", "Tell 3"))


def change_order() -> None:
    lines = rows("cat").splitlines(keepends=True)
    Path("rows.jsonl").write_text("".join(lines[::-1]))


def change_model(name: str) -> None:
    shutil.rmtree(name)
    shutil.copytree("other", name)


def change_tokenizer() -> None:
    path = Path("base/tokenizer_config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 77}))


@pytest.mark.parametrize(
    ("command", "change", "shown"),
    [
        (sft, change_rows, r"\(data: 8 rows, [0-9a-f]{16} -> 7 rows, [0-9a-f]{16}\)"),
        (sft, change_order, r"\(data: 8 rows"),
        (sft, lambda: change_model("base"), r"\(model weights: [0-9a-f]{16} -> [0-9a-f]{16}\)"),
        (sft, change_tokenizer, r"\(model tokenizer: "),
        (dpr, change_prompts, r"\(data: 8 rows, [0-9a-f]{16} -> 8 rows, [0-9a-f]{16}\)"),
        (dpr, lambda: change_model("base"), r"\(reference weights: "),
        (dpr, lambda: change_model("sft"), r"\(model weights: "),
    ],
)
def test_a_training_does_not_go_on_with_something_else(
    command: Any, change: Any, shown: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_short(command("cut"))
    steps = checkpoint_steps(Path("cut"))
    assert steps
    change()
    capsys.readouterr()
    assert main(command("cut")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "cut holds a training that began with something else" in error
    assert re.search(shown, error), error
    assert checkpoint_steps(Path("cut")) == steps


def test_a_chat_template_in_a_file_of_its_own_is_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [[{"role": "user", "content": f"Say {i}:"}] for i in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in turns))
    Path("chat.jinja").write_text(CHATML)
    argv = [*dpr("cut"), "--chat_template_path", "chat.jinja"]
    cut_short(argv)
    Path("chat.jinja").write_text(CHATML.replace("You help.", "You do not help."))
    capsys.readouterr()
    assert main(argv) == 2
    assert re.search(r"\(chat template: [0-9a-f]{16} -> [0-9a-f]{16}\)", capsys.readouterr().err)
    Path("chat.jinja").write_text(CHATML)
    assert main(argv) == 0


@pytest.mark.parametrize("command", [sft, dpr])
def test_what_does_not_decide_may_change_and_the_end_is_the_same(command: Any, place: Path) -> None:
    assert main(command("whole")) == 0
    cut_short(command("cut"))
    lines = [json.loads(line) | {"note": "read by nobody"} for line in rows("cat").splitlines()]
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("base", "sft"):  # the same content, written later
        shutil.copytree(name, "again")
        shutil.rmtree(name)
        shutil.move("again", name)
    assert main(command("cut")) == 0
    ours, theirs = weights(Path("cut/model")), weights(Path("whole/model"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


def test_another_number_of_processes_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_short(sft("cut"))
    record = read_sealed_json(Path("cut/inputs.json"))
    assert record["inputs"]["processes"] == 1
    record["inputs"]["processes"] = 2  # as if two had begun it
    write_sealed_json(Path("cut/inputs.json"), record)
    assert main(sft("cut")) == 2
    assert "(processes: 2 -> 1)" in capsys.readouterr().err
    text = Path("cut/inputs.json").read_text()
    Path("cut/inputs.json").write_text(text.replace('"processes": 2', '"processes": 3'))
    assert main(sft("cut")) == 1  # a digit that a disk has changed is no other training
    assert "cut/inputs.json is damaged" in capsys.readouterr().err


def test_a_folder_without_the_record_goes_on_and_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut_short(sft("cut"))
    before = Path("cut/inputs.json").read_text()
    Path("cut/inputs.json").unlink()
    assert main(sft("cut")) == 0
    assert "cut does not say what its training began with" in capsys.readouterr().out
    assert Path("cut/inputs.json").read_text() == before  # since then it does


def test_before_the_first_checkpoint_other_data_replace_the_first(place: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "densepath.methods._stage.train_resumable", lambda *args: (_ for _ in ()).throw(ConfigError("no"))
        )
        assert main(sft("cut")) == 2
    change_rows()
    assert main(sft("cut")) == 0
    assert json.loads(Path("cut/inputs.json").read_text())["inputs"]["data"].startswith("7 rows")


def test_a_run_does_not_go_on_beside_other_rows_another_verifier_or_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("many.jsonl").write_text(rows("cat", 80))
    changes = {"dataset_name": "many.jsonl", "num_validation_samples": 4, "num_test_samples": 4}
    monkeypatch.syspath_prepend(str(place))
    Path("checks_of_a_run.py").write_text("def check(completion, row):\n    return 1.0\n")
    changes["verifier"] = "checks_of_a_run:check"
    argv = run_argv("base", Path("run"), **changes)
    assert main(argv) == 0
    capsys.readouterr()
    Path("many.jsonl").write_text(rows("dog", 80))
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "run holds a run on other rows than many.jsonl gives now (train: " in error
    Path("many.jsonl").unlink()
    assert main(argv) == 0
    assert "goes on with the rows that it stored; their source cannot be compared" in capsys.readouterr().out
    Path("many.jsonl").write_text(rows("cat", 80))
    Path("checks_of_a_run.py").write_text("def check(completion, row):\n    return 0.0\n")
    assert main(argv) == 2
    assert "(verifier source: " in capsys.readouterr().err
    change_model("base")
    assert main(argv) == 2
    assert "(model weights: " in capsys.readouterr().err


def test_the_model_before_sft_is_found_from_elsewhere_or_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(sft("out/run")) == 0
    (place / "elsewhere").mkdir()
    shutil.copytree("other", "elsewhere/base")  # another model of that name
    monkeypatch.chdir("elsewhere")
    for record in (True, False):
        if not record:
            (place / "out/run/inputs.json").unlink()
        assert kept_models(Path("../out/run")).references["0"] == str(place / "base")
    monkeypatch.chdir(place)
    assert main([*sft("out/again")]) == 0
    change_model("base")
    with pytest.raises(ModelError, match=r"its model .*/base is another model than it was .weights changed"):
        kept_models(Path("out/again"))


@pytest.mark.parametrize(
    ("reference", "kept"), [("auto", True), ("0.25,0.5", True), ("ema", True), ("models/a", False)]
)
def test_references_that_a_run_keeps_itself(reference: str, kept: bool) -> None:
    assert is_kept(reference) is kept


def test_transformers_still_counts_processes() -> None:
    assert TrainingArguments(output_dir="x", use_cpu=True, report_to="none").world_size == 1
