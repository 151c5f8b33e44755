"""`accelerate launch --config_file recipes/accelerate/{single_gpu,zero*}.yaml`: the commands on this CPU.

With DeepSpeed accelerate starts as many processes as it is asked for, since it takes DeepSpeed for the accelerator.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tests.launching import ENVIRONMENT, NEEDS_DEEPSPEED, ROOT
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.io import read_jsonl
from densepath.records.behaviours import Purification
from densepath.records.codec import read_record

pytestmark = pytest.mark.slow
OFFLOAD = ("--offload_optimizer_device", "cpu", "--offload_param_device", "cpu")
KINDS = {"zero2": (), "zero3": (), "zero3 offloaded": OFFLOAD}


def by_recipe(name: str, *options: str) -> list[str]:
    """The launcher's words with that file of `recipes/accelerate/`."""
    recipe = ROOT / f"recipes/accelerate/{name}.yaml"
    return ["-m", "accelerate.commands.launch", "--config_file", str(recipe), *options]


def densepath(kind: str | None, *words: object, mixed_precision: str = "no") -> subprocess.CompletedProcess:
    """The command in one process, or in two by that recipe of DeepSpeed."""
    launch: list[str] = []
    if kind is not None:
        options = ["--num_processes", "2", "--main_process_port", "0", "--mixed_precision", mixed_precision]
        launch = by_recipe(kind.split()[0], *options, *KINDS[kind])
    return command(launch, *words)


def command(launch: list[str], *words: object) -> subprocess.CompletedProcess:
    whole = [sys.executable, *launch, "-m", "densepath.cli.main", *map(str, words)]
    done = subprocess.run(whole, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tokenizer = tiny_tokenizer()
    model = tiny_llama(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sft_words(base, folder, processes: int) -> list[object]:
    return [
        *("sft", "--model_name_or_path", base, "--output_dir", folder, "--dataset_name", "text_tasks"),
        *("--max_train_samples", 12, "--max_steps", 4, "--per_device_train_batch_size", 4 // processes),
        *("--learning_rate", "1e-3", "--reference_fractions", 0.5, "--save_steps", 2, "--seed", 3),
    ]


def purify_words(base, sft, folder, processes: int) -> list[object]:
    return [
        *("purify", "--model_name_or_path", sft, "--ref_model_name_or_path", base, "--dataset_name", "text_tasks"),
        *("--max_train_samples", 40, "--purify_behaviours", 2, "--purify_kinds", 1, "--purify_samples", 6),
        *("--purify_steps", 3, "--purify_final_steps", 3, "--purify_learning_rate", "1e-3", "--seed", 3),
        *("--num_validation_samples", 6, "--max_completion_length", 5, "--output_dir", folder),
        *("--per_device_train_batch_size", 4 // processes),
    ]


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """SFT by one process, its rows scored, and purified SFT."""
    folder = tmp_path_factory.mktemp("alone")
    densepath(None, *sft_words(base, folder / "sft", 1))
    densepath(None, *score_words(base, folder / "sft/model", folder / "scores.jsonl"))
    densepath(None, *purify_words(base, folder / "sft/model", folder / "purified", 1))
    return folder


def score_words(base, model, file) -> list[object]:
    return [
        *("score", "--model_name_or_path", model, "--ref_model_name_or_path", base, "--dataset_name", "text_tasks"),
        *("--max_samples", 12, "--window_size", 3, "--output_file", file),
    ]


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("kind", KINDS)
def test_sft_dpr_and_score_under_the_recipe(tmp_path, base, alone, kind):
    done = densepath(kind, *sft_words(base, tmp_path / "sft", 2))
    assert done.stdout.count("model: ") == 1  # one process speaks
    for place in ("model", "references/0.5"):
        ours, theirs = (load_file(folder / f"sft/{place}/model.safetensors") for folder in (tmp_path, alone))
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, atol=1e-4, rtol=1e-3, msg=f"{place} {name}")
    words = ["dpr", "--model_name_or_path", tmp_path / "sft/model", "--ref_model_name_or_path", base]
    words += ["--output_dir", tmp_path / "dpr", "--dataset_name", "text_tasks", "--max_train_samples", 8]
    words += ["--max_steps", 2, "--num_generations", 2, "--per_device_train_batch_size", 2]
    densepath(kind, *words, "--max_completion_length", 5)
    assert sum(1 for _ in (tmp_path / "dpr/metrics.jsonl").open()) == 3  # two steps and the totals, once each
    trained = load_file(tmp_path / "dpr/model/model.safetensors")
    assert any(not torch.equal(trained[name], value) for name, value in ours.items())
    densepath(kind, *score_words(base, alone / "sft/model", tmp_path / "scores.jsonl"))
    ours, theirs = (read_jsonl(folder / "scores.jsonl") for folder in (tmp_path, alone))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["reward"] == pytest.approx(other["reward"], abs=1e-5)


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("kind", KINDS)
def test_purify_under_the_recipe(tmp_path, base, alone, kind):
    done = densepath(kind, *purify_words(base, alone / "sft/model", tmp_path / "purified", 2))
    assert done.stdout.count("page: ") == 1  # one process speaks
    ours, theirs = (read_record(Purification, folder / "purified/purification.json") for folder in (tmp_path, alone))
    assert ours.trained == theirs.trained == (tmp_path / "purified/model").exists()
    assert (ours.behaviour, ours.kept, ours.reason) == (theirs.behaviour, theirs.kept, theirs.reason)
    for mine, other in zip(ours.mixtures[0].behaviours, theirs.mixtures[0].behaviours, strict=True):
        assert mine.share == pytest.approx(other.share, abs=1e-3)
        assert mine.reward == pytest.approx(other.reward, abs=1e-3)
    if ours.trained:
        trained, other = (load_file(folder / "purified/model/model.safetensors") for folder in (tmp_path, alone))
        for name, value in other.items():
            torch.testing.assert_close(trained[name], value, atol=1e-4, rtol=1e-3, msg=name)


@NEEDS_DEEPSPEED
@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_as_the_recipe_stands_in_bfloat16(tmp_path, base, alone, kind):
    densepath(kind, *sft_words(base, tmp_path / "sft", 2), "--bf16", "True", mixed_precision="bf16")
    ours, theirs = (load_file(folder / "sft/model/model.safetensors") for folder in (tmp_path, alone))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name].float(), value, atol=2e-2, rtol=2e-2, msg=name)


def test_the_recipe_of_one_gpu_gives_the_bits_of_bf16(tmp_path, base):
    """On a CPU, as the file stands: the launcher's mixed precision is the argument's."""
    command(by_recipe("single_gpu"), *sft_words(base, tmp_path / "launched", 1))
    command([], *sft_words(base, tmp_path / "alone", 1), "--bf16", "True")
    ours, theirs = (load_file(tmp_path / folder / "model/model.safetensors") for folder in ("launched", "alone"))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=0, rtol=0, msg=name)
