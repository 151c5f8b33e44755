"""Part (e): what only some machines have, or only some recipes use; what is not there is said."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.boxes import Report, compared
from benchmarks.gpu.shapes import TINY
from benchmarks.gpu.speed import SMALL, Work, dpr_step, empty
from densepath.models.load import load_model
from densepath.models.quantized import check_four_bit, parameter_count
from densepath.models.scoring import score_completions

if TYPE_CHECKING:
    from benchmarks.gpu.check import Settings

VLLM_SECONDS = 35.0
"""That vLLM may take to begin and to answer; the last item, so that the others are there already."""
NATS = 1e-3
"""Largest difference of a log-probability that vLLM computes in float32."""
QUANTISED = 1e-3
"""Nats a token that 4 bits change at least; float32 on another device changes a hundredth of it."""
LONG_PROMPTS = Work(completions=16, group=4, prompt=1024, completion=32, rows=8)
"""About as many tokens in a micro-batch as `FULL` has, nearly all of them prompts: a decoding step of a small model
takes its kernels' dispatch, some 40 ms, and 256 of them twice would be the whole box."""


def run(settings: Settings, report: Report) -> None:
    """Each of them; what starts other processes comes last."""
    from tests.pipeline.runs import save_tiny_model
    from tests.rewards.vllm_models import saved_pair

    model = save_tiny_model(settings.folder / "extras/model", hidden_size=64, intermediate_size=128)
    with report.item("4 bits") as values:
        values.update(_four_bit(model, settings.device))
    name, work = (TINY, SMALL) if settings.tiny else ("Qwen3-0.6B", LONG_PROMPTS)
    for checkpointing in (True, False):
        with report.item(f"gradient checkpointing {'on' if checkpointing else 'off'}") as values:
            values.update(dpr_step(name, settings, work, checkpointing=checkpointing))
    empty()  # for the processes that follow
    with report.item("FSDP2 on one device") as values:
        values.update(_fsdp(model, settings))
    with report.item("vLLM") as values:
        values.update(_vllm(str(saved_pair(settings.folder / "extras")[0])))


def _package(name: str) -> dict[str, Any]:
    if importlib.util.find_spec(name) is None:
        return {"version": "not installed"}
    names = metadata.packages_distributions().get(name, [])  # vLLM's build for CPUs is called otherwise
    return {"version": ", ".join(f"{each} {metadata.version(each)}" for each in dict.fromkeys(names))}


def _four_bit(model: str, device: str) -> dict[str, Any]:
    """Scores of a base in 4 bits: finite, and not those of a base that was never quantised."""
    from densepath.config.mixins import TrainableArguments

    found = _package("bitsandbytes")
    if found["version"] == "not installed":
        return found
    arguments = TrainableArguments(model_name_or_path=model, use_peft=True, load_in_4bit=True)
    check_four_bit()
    whole, loaded = load_model(model), load_model(model, device=device, **arguments.model_options())
    texts = [[5, 6, 7]] * 2, [[8, 9, 10, 11]] * 2
    one, other = (score_completions(each, *texts).logprobs[0] for each in (whole, loaded))
    apart = float((one - other).abs().mean())
    found["parameters"] = compared(float(abs(parameter_count(whole) - parameter_count(loaded))), 0)
    found["scores that are not finite"] = compared(float((~other.isfinite()).sum()), 0)
    found["apart, nats"] = apart
    found["as if never quantised"] = compared(float(apart < QUANTISED), 0)
    return found


def _vllm(model: str) -> dict[str, Any]:
    """A few completions by vLLM where it is installed, whose log-probabilities are densepath's."""
    found = _package("vllm")
    if found["version"] == "not installed":
        return found
    words = [sys.executable, "-m", "benchmarks.gpu.vllm_sample", model]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=VLLM_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {**found, "not used": f"it has not answered within {VLLM_SECONDS:.0f} s"}
    if done.returncode:
        raise RuntimeError(f"vLLM ended with {done.returncode}: {' '.join(done.stderr.splitlines()[-3:])}")
    told = json.loads(done.stdout.splitlines()[-1])
    if "largest difference" in told:
        told["log-probabilities"] = compared(told.pop("largest difference"), NATS)
    return {**found, **told}


def _fsdp(model: str, settings: Settings) -> dict[str, Any]:
    """`densepath dpr` under accelerate's FSDP2 with one process."""
    if not settings.device.startswith("cuda"):
        return {"skipped": "accelerate spreads models over accelerators alone"}
    words = ["--model_name_or_path", model, "--ref_model_name_or_path", model, "--dataset_name", "text_tasks"]
    words += ["--max_train_samples", "8", "--max_steps", "2", "--max_completion_length", "6", "--num_generations", "2"]
    words += ["--per_device_train_batch_size", "4", "--output_dir", str(settings.folder / "extras/fsdp")]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate/fsdp2.yaml"]
    done = subprocess.run(
        [*launch, "--num_processes", "1", "-m", "densepath.cli.main", "dpr", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    return {"exit code": compared(float(abs(done.returncode)), 0), "last lines": done.stderr.splitlines()[-3:]}
