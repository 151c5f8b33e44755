"""DPR whose completions vLLM samples in the same process, on a CPU: `python -m tests.trainers.vllm_script OUTPUT`."""

from __future__ import annotations

import sys
from pathlib import Path

import datasets
import torch
from tests.rewards.vllm_models import saved_pair
from tests.trainers.distributed_script import PROMPTS

from densepath.models.scoring import score_completions
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig


def main(output: Path) -> None:
    """Two steps; the samples of each with vLLM's log-probabilities and those of the policy at that time."""
    sft, ref = saved_pair(output)
    trainer = DPRTrainer(
        model=str(sft),
        ref_model=str(ref),
        args=DPRConfig(
            output_dir=str(output / "trainer"),
            use_vllm=True,
            vllm_max_model_length=64,
            max_steps=2,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=12,
            learning_rate=0.05,
            optim="sgd",
            beta=0.3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
        ),
        train_dataset=datasets.Dataset.from_list(PROMPTS),
    )
    seen = []
    inner = trainer._generate

    def recorded(prompts):
        made = inner(prompts)
        batch = trainer.rollout
        own = score_completions(trainer.model, batch.prompt_ids, batch.completion_ids).logprobs
        seen.append((batch.completion_ids, batch.logprobs, own))
        return made

    trainer._generate = recorded
    trainer.train()
    trainer.vllm_generation.sync_weights()
    llm = trainer.vllm_generation.llm
    from vllm import SamplingParams

    prompt = [5, 6, 7]
    drawn = llm.generate(
        [{"prompt_token_ids": prompt}], SamplingParams(n=4000, max_tokens=1, seed=1, detokenize=False), use_tqdm=False
    )
    counts = torch.bincount(
        torch.tensor([each.token_ids[0] for each in drawn[0].outputs]), minlength=trainer.model.config.vocab_size
    )
    with torch.no_grad():
        probs = trainer.model(input_ids=torch.tensor([prompt])).logits[0, -1].double().softmax(-1)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    torch.save({"seen": seen, "logs": logs, "counts": counts, "probs": probs}, output / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
