"""DPR by one process or several, one scenario after the other: `python processes_script.py OUTPUT SCENARIO ...`.

The sampler is replaced by one whose completions depend on the prompt and on the place among its siblings alone, so
that processes and a single process see the same global batch.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import datasets
import torch
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama, with_lora
from tests.trainers.distributed_script import PROMPTS, fixed_samples
from transformers import TrainerCallback

from densepath.trainers import dpr
from densepath.trainers.callbacks import CompleteCheckpointCallback, last_complete_checkpoint
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig

PROCESSES = int(os.environ.get("WORLD_SIZE", "1"))
BATCH = 8 // PROCESSES


def parity_reward(completion_ids, **kwargs):
    return [float(sum(ids) % 5) for ids in completion_ids]


def even_tokens(completion_ids, **kwargs):
    return [[float(token % 2 == 0) for token in ids] for ids in completion_ids]


SCENARIOS = {
    # 6 prompts, two a batch: three batches an epoch, so the second window of two micro-batches is cut short.
    "accumulation": {
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 1,
        "num_train_epochs": 2,
        "max_steps": -1,
    },
    "truncated": {"mask_truncated_completions": True},
    "hybrid": {"dense_reward_weight": 0.4, "reward_weights": [1.0, 0.5], "baseline": "leave_one_out"},
    "adapter": {"optim": "adamw_torch", "learning_rate": 0.003, "max_grad_norm": 1.0},
    "several_updates": {"num_iterations": 2, "max_steps": 4},
}


def trainer_of(output: Path, scenario: str, **more) -> DPRTrainer:
    tokenizer = tiny_tokenizer()
    models = [tiny_llama(vocab_size=len(tokenizer), seed=seed) for seed in (0, 1)]
    for model in models:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    values = {
        "max_steps": 2,
        "per_device_train_batch_size": BATCH,
        "num_generations": 4,
        "max_completion_length": 6,
        "learning_rate": 0.02,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "beta": 0.3,
        "estimator": "auto",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 1,
    }
    return DPRTrainer(
        model=with_lora(models[0]) if scenario == "adapter" else models[0],
        ref_model=models[1],
        args=DPRConfig(output_dir=str(output / scenario), **{**values, **SCENARIOS.get(scenario, {}), **more}),
        train_dataset=datasets.Dataset.from_list(PROMPTS[:6]),
        processing_class=tokenizer,
        reward_funcs=[parity_reward, even_tokens] if scenario == "hybrid" else None,
    )


def weights(trainer: DPRTrainer) -> torch.Tensor:
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


class Kill(TrainerCallback):
    """Ends the last process as the machine's memory killer would, when a step begins."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == PROCESSES - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def interrupted(output: Path, name: str, kill_at: int | None) -> DPRTrainer:
    """Training with a checkpoint each step; several updates a generation, so that most lie inside of one."""
    dpr.sample = SAMPLE
    trainer = trainer_of(
        output, name, max_steps=6, save_strategy="steps", save_steps=1, steps_per_generation=2, save_total_limit=2
    )
    trainer.add_callback(CompleteCheckpointCallback())
    if kill_at is not None:
        trainer.add_callback(Kill(kill_at))
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output / name))
    return trainer


SAMPLE = dpr.sample


def main(output: Path, scenarios: list[str]) -> None:
    """Run each scenario and save what this process ended with."""
    torch.set_num_threads(1)
    for scenario in scenarios:
        dpr.sample = fixed_samples
        if scenario in ("whole", "killed", "resumed"):
            name = "whole" if scenario == "whole" else "killed"
            trainer = interrupted(output, name, kill_at=3 if scenario == "killed" else None)
        else:
            trainer = trainer_of(output, scenario)
            trainer.train()
        logs = [row for row in trainer.state.log_history if "loss" in row]
        found = {"weights": weights(trainer), "logs": logs, "processes": trainer.accelerator.num_processes}
        torch.save(found, output / f"{scenario}-{trainer.accelerator.process_index}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
