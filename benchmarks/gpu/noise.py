"""Part (d): what bfloat16 adds to the reward on this device, for adapters of one base that are close and distant.

The weights are random, so the numbers are for comparing devices and kernels; docs/reward.md has those of a real model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from benchmarks.gpu.boxes import Report
from benchmarks.gpu.shapes import TINY, random_model, with_adapters
from benchmarks.reward_noise import noise, rewards
from densepath.rewards.frozen import FrozenPolicy

if TYPE_CHECKING:
    from benchmarks.gpu.check import Settings

CLOSE = 0.1
"""Share of the way from the base to the SFT adapter that the close reference leaves."""


def run(settings: Settings, report: Report) -> None:
    """The reward in float64, float32 and bfloat16."""
    name = TINY if settings.tiny else "Qwen3-0.6B"
    model = with_adapters(random_model(name, settings.device, torch.float32), "close")
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for key, weight in weights.items():
            if "lora" in key and ".close." in key:
                own = weights[key.replace(".close.", ".default.")]
                weight.copy_(own * (1 - CLOSE) if "lora_B" in key else own)
    model.requires_grad_(False).eval()
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 500, (64,), generator=draw).tolist() for _ in range(4 if settings.tiny else 32)]
    texts = [each[:16] for each in ids], [each[16:] for each in ids]
    policies = [FrozenPolicy(model, adapter) for adapter in ("default", "close", None)]
    truth = None
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        for key, module in model.named_modules():
            if "lora" not in key:  # adapters stay in float32, as in a run
                for weight in module.parameters(recurse=False):
                    weight.data = weight.data.to(dtype)
        with report.item(str(dtype).removeprefix("torch.")) as values:
            found = rewards(policies, texts)
            truth = found if truth is None else truth
            values.update(noise(truth, found, ["close", "base"]))
