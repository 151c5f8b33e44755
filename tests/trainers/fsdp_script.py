"""DPR under FSDP2 over two processes on a CPU: `torchrun ... -m tests.trainers.fsdp_script OUTPUT sharded|whole KIND`.

KIND is plain, adapter, or generate, where TRL's generation samples instead of completions being fixed.

accelerate offers FSDP on accelerators alone; here it is told that the CPUs are some. What runs is its own FSDP2 code.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from accelerate import state
from accelerate.utils import DistributedType


def pretend(self, *args, **kwargs):
    return "gloo", DistributedType.MULTI_GPU


def cpu(self):
    self.device = torch.device("cpu")


if sys.argv[2] == "sharded":
    state.PartialState._prepare_backend = pretend
    state.PartialState.set_device = cpu

from tests.trainers import processes_script  # noqa: E402
from tests.trainers.distributed_script import fixed_samples  # noqa: E402


def main(output: Path, sharded: bool, kind: str) -> None:
    """Train two steps and save the whole weights and the logs."""
    torch.set_num_threads(1)
    if sharded:
        os.environ |= {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
        }
    trainer = processes_script.trainer_of(
        output, kind, use_cpu=not sharded, estimator="sampled", dataloader_pin_memory=False
    )

    def completions(prompt_ids, *args, **kwargs):  # TRL's generation draws others: its completions are fixed too
        model = processes_script.tiny_llama(vocab_size=384)
        found = fixed_samples(model, prompt_ids, max_completion_length=6, eos_token_ids=trainer.eos_token_ids)
        return found.completion_ids, None

    if kind != "generate":
        trainer._generate_single_turn = completions
    trainer.train()
    policy = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    if trainer.accelerator.is_main_process:
        weights = {name: value.detach().clone() for name, value in policy.items()}
        torch.save({"weights": weights, "logs": logs, "fsdp": trainer.is_fsdp_enabled}, output / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "sharded", sys.argv[3])
