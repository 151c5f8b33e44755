"""`densepath`: help without torch, exit codes, one line instead of a traceback, and --debug for the traceback."""

from __future__ import annotations

import errno
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module

import pytest

import densepath.cli.env
from densepath import __version__
from densepath.cli.main import COMMANDS, main
from densepath.config.listed import DPR, RUN, SFT
from densepath.errors import ConfigError, NumericalError, StorageError

HELP = """
import contextlib, io, sys
from densepath.cli.main import COMMANDS, main
for words in ([], ["--help"], ["-h"], ["help"], ["--version"], *([name, "--help"] for name in COMMANDS)):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    assert code == (0 if words else 2), (words, code)
    assert "densepath" in out.getvalue(), words
heavy = {"torch", "transformers", "trl", "datasets", "numpy", "matplotlib", "rich"} & set(sys.modules)
assert not heavy, heavy
"""


def test_every_help_answers_without_importing_anything_heavy():
    done = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command_and_argument(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for words in ("--model_name_or_path", "--reference", "(default: auto)", "(default: 0.0 0.25 0.5 0.75)"):
        assert words in out
    assert "any sft_* key goes to TRL's SFTConfig" in out


@pytest.mark.parametrize(("command", "listed"), [("run", RUN), ("sft", SFT), ("dpr", DPR)])
def test_help_lists_what_matters_with_the_defaults_and_choices_of_the_config(command, listed, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    out = " ".join(capsys.readouterr().out.split())
    names = re.findall(r"--(\w+) [A-Z]|--(\w+) \[[A-Z]", out)
    assert {one or other for one, other in names} - {"config", "debug", "key"} == {*listed.own, *listed.trainer}
    for place in listed.configs.values():
        module, _, name = place.partition(":")
        config = getattr(import_module(module), name)("x", bf16=False)
        for key, told in listed.trainer.items():
            value = getattr(config, key)
            assert value == told.default or (key, told.default) == ("report_to", "none"), key
            assert f"(default: {told.default})" in out
            for choice in told.choices:
                assert choice in out
            if told.choices:
                with pytest.raises(ConfigError) as error:
                    type(config)("x", bf16=False, **{key: "nothing"})
                assert set(str(error.value).partition("choose one of: ")[2].split(", ")) == set(told.choices)


def test_help_all_lists_every_argument(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["dpr", "--help-all"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for name in ("lora_r", "kl_in_return", "weight_decay", "vllm_mode", "max_eval_samples", "beta"):
        assert len(re.findall(rf"^  --{name}\b", out, flags=re.MULTILINE)) == 1, name
    with pytest.raises(SystemExit):
        main(["run", "--help_all"])
    out = capsys.readouterr().out
    assert "--sft_weight_decay VALUE" in out
    assert "--dpr_gamma VALUE" in out
    assert "--judge_concurrency" in out


def test_help_groups_the_commands_by_what_a_reader_wants(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    titles = [line.rstrip(":") for line in out.splitlines() if re.fullmatch(r"[a-z]+:", line)]
    assert titles == ["train", "decide", "measure", "data", "look", "machine", "background"]
    assert all(len(line) <= 100 for line in out.splitlines())


def test_hyphens_are_as_good_as_underscores(capsys):
    for words in (["reward-eval", "--max-samples", "0"], ["reward_eval", "--max_samples=0"]):
        assert main([*words, "--model-name-or-path=my-model", "--dense-reward", "logprob", "--dataset-name", "x"]) == 2
        assert "max_samples=0 must be at least 1" in capsys.readouterr().err


def test_version_and_unknown_commands(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"densepath {__version__}\n"
    assert main(["evaluate"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "no command 'evaluate'; did you mean eval? There are run, sft" in err
    moved = "what it did is in diagnose"
    for word, told in {"runs": "did you mean run?", "select": moved, "x": "choose one of: run"}.items():
        assert main([word]) == 2
        assert f"no command {word!r}; {told}" in capsys.readouterr().err


def test_the_package_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["densepath", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("densepath", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"densepath {__version__}\n"


@pytest.fixture
def failing(monkeypatch):
    """Make `densepath env` raise."""

    def install(error: BaseException):
        def run(argv):
            raise error

        monkeypatch.setattr(densepath.cli.env, "run", run)

    return install


def _full_disk_inside_of_another_error() -> Exception:
    error = RuntimeError("saving failed")
    error.__context__ = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "model.safetensors")
    return error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (NumericalError("loss is nan\n  at step 3"), 1, "error: loss is nan at step 3"),
        (StorageError("cannot write x"), 1, "error: cannot write x"),
        (KeyboardInterrupt(), 130, "interrupted; what was written is whole, and the same command goes on"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a/b"),
            1,
            "cannot write a/b: No space left on device; free",
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "a/b"), 1, "cannot write a/b: Disk quota exceeded; free some"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "cannot write a/b: Permission denied; give"),
        (_full_disk_inside_of_another_error(), 1, "cannot write model.safetensors: No space left on device"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), 1, "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), 1, "the disk is full"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            1,
            "out of memory. Tried to allocate 2 GiB; low",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "can't allocate memory"),
    ],
)
def test_failures_are_one_line_and_debug_shows_the_traceback(failing, capsys, error, code, message):
    failing(error)
    assert main(["env"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert err.lstrip("\n").startswith("densepath: ")
    with pytest.raises(type(error)):
        main(["env", "--debug"])


def test_a_bug_of_our_own_keeps_its_traceback(failing):
    failing(KeyError("lost"))
    with pytest.raises(KeyError):
        main(["env"])


def test_a_reader_that_went_away_is_no_error():
    """`densepath env | head -1`: the pipe is closed before everything was printed."""
    code = (
        "import densepath.pipeline.environment as e; e.environment = lambda: {str(i): 'x' * 99 for i in range(9999)}\n"
        "import sys; from densepath.cli.main import main; sys.exit(main(['env']))"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.readline()
    child.stdout.close()
    assert child.stderr.read() == ""
    assert child.wait(timeout=60) == 0
    child.stderr.close()


def test_a_warning_is_one_line_without_its_place_in_the_code():
    code = (
        "import sys, types, warnings; from densepath.cli import main\n"
        "run = lambda words: warnings.warn('two\\nlines') or 0\n"
        "sys.modules['densepath.cli.env'] = types.SimpleNamespace(run=run)\n"
        "main.main(['env'])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said == "densepath: warning: two lines\n"


def test_a_model_that_the_hub_is_asked_for_is_told_at_once(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    asked = []
    monkeypatch.setattr(
        "densepath.scoring.job.run_score_command", lambda *given: asked.append(capsys.readouterr().out)
    )
    words = ["score", "--model_name_or_path", "nobody/has-this-model", "--dataset_name", "x"]
    assert main([*words, "--ref_model_name_or_path", str(tmp_path)]) == 0
    (told,) = asked
    assert " ".join(told.split()) == (
        "model_name_or_path=nobody/has-this-model is no folder here, nor in the hub's cache: asking the hub for it"
    )


@pytest.mark.parametrize(
    ("words", "function", "told"),
    [
        (
            "judge --benchmark lima --models no/a HERE --baseline no/b --judge local:no/c --second_judge reward:no/d",
            "pipeline.judge.run_judge_command",
            ["models=no/a", "baseline=no/b", "judge=no/c", "second_judge=no/d"],
        ),
        ("judge --benchmark lima --models no/a --judge local:no/c --dry_run", "pipeline.judge.run_judge_command", []),
        (
            "judge --benchmark alpaca_eval --models HERE --baseline gpt4_turbo --judge dense:no/c",
            "pipeline.judge.run_judge_command",
            [],
        ),
        (
            "view --port 0 --model_name_or_path no/a HERE --ref_model_name_or_path no/b",
            "serve.view_models.RewardChoices",
            ["model_name_or_path=no/a", "ref_model_name_or_path=no/b"],
        ),
        (
            "serve --port 0 --model_name_or_path no/a --dense_reward logprob",
            "rewards.dense.DenseReward.from_models",
            ["model_name_or_path=no/a"],
        ),
        (
            "run --model_name_or_path HERE --dataset_name d --reference no/a --judge local:no/c --dry_run",
            "pipeline.dry_run.run_run_command",
            ["reference=no/a", "judge=no/c"],
        ),
        ("run --model_name_or_path HERE --dataset_name d --reference 0.5", "pipeline.dry_run.run_run_command", []),
        (
            "judge-eval --dataset_name d --judge local:no/c --dry_run",
            "pipeline.judge_eval.run_judge_eval_command",
            ["judge=no/c"],
        ),
        ("plan --model_name_or_path no/a", "pipeline.plan.plan_recipe", ["model_name_or_path=no/a"]),
        ("plan --model_name_or_path no/a --json", "pipeline.plan.plan_recipe", ["model_name_or_path=no/a"]),
        ("plan --model_name_or_path Qwen/Qwen3-0.6B", "pipeline.plan.plan_recipe", []),
        (
            "experiment --config RECIPE",
            "pipeline.experiment.run_experiment",
            ["model_name_or_path=no/a", "judge=no/c", "reference=no/b"],
        ),
    ],
)
def test_the_hub_is_told_of_by_every_command_that_loads_models(words, function, told, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def stop(*given, **named):
        raise ConfigError("enough")

    monkeypatch.setattr(f"densepath.{function}", stop)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "dataset_name: d\nsettings:\n  one: {model_name_or_path: no/a, judge: local:no/c}\n"
        "  two: {model_name_or_path: no/a, verifier: exact_match}\n"
        "methods:\n  sft: {}\n  dpr: {tune: {reference: ['0.5', no/b]}}\n",
        encoding="utf-8",
    )
    assert main(words.replace("HERE", str(tmp_path)).replace("RECIPE", str(recipe)).split()) == 2
    said = capsys.readouterr()
    lines = [line for line in (said.out + said.err).splitlines() if "asking the hub" in line]
    assert sorted(line.split()[0] for line in lines) == sorted(told)
