"""Trainings on two processes: `torchrun ... -m tests.trainers.deepspeed_script OUTPUT KIND WORK ...`.

KIND is ddp or, under DeepSpeed, a key of `KINDS`. WORK is a training of `WORKS`, or whole, killed or resumed: four
steps of DPR with a checkpoint each, in the last of which a process dies. The completions of DPR are fixed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate.state import AcceleratorState
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_gemma3, tiny_llama
from tests.trainers import processes_script
from tests.trainers.distributed_script import fixed_samples
from trl import SFTConfig

from densepath.trainers.callbacks import CompleteCheckpointCallback, last_complete_checkpoint
from densepath.trainers.sft import sft_trainer

OFFLOAD = {"device": "cpu"}
KINDS: dict[str, dict[str, Any]] = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero3": {"stage": 3},
    "zero2_offload": {"stage": 2, "offload_optimizer": OFFLOAD},
    "zero3_offload": {"stage": 3, "offload_optimizer": OFFLOAD, "offload_param": OFFLOAD},
}
WORKS = ("dpr", "accumulation", "adapter", "hybrid", "sft", "dft")
KEPT = {
    "max_steps": 4,
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "save_strategy": "steps",
    "save_steps": 1,
    "save_total_limit": 2,
}
ROWS = [  # (ids, 1 where the token is an action)
    ([10, 11, 12, 40, 41, 1], [0, 0, 0, 1, 1, 1]),
    ([10, 13, 42, 1], [0, 0, 1, 1]),
    ([20, 21, 22, 23, 24, 25, 43, 44, 45, 46, 1], [0] * 6 + [1] * 5),
    ([30, 50, 1, 31, 32, 51, 52, 1], [0, 1, 1, 0, 0, 1, 1, 1]),
]


def engine(kind: str) -> dict[str, Any]:
    """The arguments that ask for it; in ZeRO-3 no weight stays whole because it is small."""
    if kind == "ddp":
        return {}
    zero = {
        **KINDS[kind],
        "stage3_param_persistence_threshold": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    }
    names = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    allowed = {"zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True}
    return {"deepspeed": {**dict.fromkeys(names, "auto"), "zero_optimization": zero, **allowed}}


def dpr(output: Path, kind: str, work: str, **more: Any) -> Any:
    trainer = processes_script.trainer_of(output, work, estimator="sampled", **engine(kind), **more)
    model = tiny_llama(vocab_size=384)

    def completions(prompt_ids, *args, **kwargs):
        found = fixed_samples(model, prompt_ids, max_completion_length=6, eos_token_ids=trainer.eos_token_ids)
        return found.completion_ids, None

    trainer._generate_single_turn = completions
    return trainer


def sft(output: Path, kind: str, work: str) -> Any:
    """Of a model whose embeddings are its head, with twice as many rows as a step takes."""
    tokenizer = tiny_tokenizer()
    model = tiny_gemma3(vocab_size=len(tokenizer))
    encoded = {"input_ids": [ids for ids, _ in ROWS], "completion_mask": [mask for _, mask in ROWS]}
    arguments = SFTConfig(
        output_dir=str(output / work),
        max_steps=3,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        loss_type="dft" if work == "dft" else "nll",
        learning_rate=1e-3,
        optim="adamw_torch",
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        max_length=None,
        **engine(kind),
    )
    return sft_trainer(model, tokenizer, datasets.Dataset.from_dict(encoded), arguments)


def trained(output: Path, kind: str, work: str) -> Any:
    if work in ("sft", "dft"):
        trainer = sft(output, kind, work)
        trainer.train()
    elif work in WORKS:
        trainer = dpr(output, kind, work)
        trainer.train()
    else:
        name = "whole" if work == "whole" else "killed"
        trainer = dpr(output, kind, name, **KEPT)
        trainer.add_callback(CompleteCheckpointCallback())
        if work == "killed":
            trainer.add_callback(processes_script.Kill(3))
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(output / name))
    return trainer


def main(output: Path, kind: str, works: list[str]) -> None:
    """Train one after the other, and save the whole weights and the logs of each."""
    torch.set_num_threads(1)
    for work in works:
        AcceleratorState._reset_state()
        trainer = trained(output, kind, work)
        policy = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if trainer.accelerator.is_main_process:
            weights = {name: value.detach().clone() for name, value in policy.items()}
            logs = [row for row in trainer.state.log_history if "loss" in row]
            plugin = trainer.accelerator.state.deepspeed_plugin
            stage = None if plugin is None else plugin.zero_stage
            torch.save({"weights": weights, "logs": logs, "stage": stage}, output / f"{work}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
