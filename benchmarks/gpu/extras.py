"""Part (e): what only some machines have, or only some recipes use; what is not there is said."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.boxes import Report, compared
from benchmarks.gpu.shapes import TINY
from benchmarks.gpu.speed import FULL, SMALL, dpr_step
from densepath.models.load import load_model
from densepath.models.quantized import check_four_bit, parameter_count
from densepath.models.scoring import score_completions

if TYPE_CHECKING:
    from benchmarks.gpu.check import Settings


def run(settings: Settings, report: Report) -> None:
    """Each of them."""
    from tests.pipeline.runs import save_tiny_model

    model = save_tiny_model(settings.folder / "extras/model", hidden_size=64, intermediate_size=128)
    with report.item("4 bits") as values:
        values.update(_four_bit(model, settings.device))
    with report.item("vLLM") as values:
        values.update(_package("vllm"))
    with report.item("FSDP2 on one device") as values:
        values.update(_fsdp(model, settings))
    name, work = (TINY, SMALL) if settings.tiny else ("Qwen3-0.6B", FULL)
    for checkpointing in (True, False):
        with report.item(f"gradient checkpointing {'on' if checkpointing else 'off'}") as values:
            values.update(dpr_step(name, settings, work, checkpointing=checkpointing))


def _package(name: str) -> dict[str, Any]:
    there = importlib.util.find_spec(name) is not None
    return {"version": metadata.version(name) if there else "not installed"}


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
    found["parameters"] = compared(float(abs(parameter_count(whole) - parameter_count(loaded))), 0)
    found["apart, nats"] = float((one - other).abs().mean())
    return found


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
