"""Stages on the tests' run folder, and how what they leave is compared."""

from __future__ import annotations

import io

import torch
from rich.console import Console
from safetensors.torch import load_file
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.methods import SFTRun, Stage, get_method
from densepath.pipeline.against_sft import check_of_run

PARAMETERS = sum(p.numel() for p in tiny_llama(vocab_size=len(tiny_tokenizer())).parameters())


def stage_of(source, folder, others=None, method="spin", **changes) -> Stage:
    arguments = get_method(method).arguments(
        **{
            **{"model_name_or_path": str(source / "base"), "reference": "0.5", "reference_fractions": [0.0, 0.5]},
            **{"dpr_max_steps": 4, "dpr_per_device_train_batch_size": 6, "num_generations": 2},
            **{"dpr_learning_rate": 1e-3, "max_completion_length": 8, "save_steps": 100},
            **{"sft_per_device_train_batch_size": 8},
            **changes,
        }
    )
    sft = SFTRun(source, arguments)
    console = Console(file=io.StringIO())
    check = check_of_run(sft, arguments)
    return Stage(sft, folder, arguments, others or {}, console, "test", check=check)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in b)
