"""Two steps of DPR, run by one process or by several: `python distributed_script.py OUTPUT MODE BATCH_SIZE [CHANGES]`.

CHANGES are further arguments of `DPRConfig` in JSON.

MODE "fixed" replaces the sampler by one whose completions depend on the prompt and on the place among its siblings
alone, so that processes and a single process see the same global batch; "sampled" keeps the sampler; "nan" makes the
loss of the last process NaN at the second step.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import datasets
import torch
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from densepath.errors import NumericalError
from densepath.models.sampling import Samples
from densepath.trainers import dpr
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig

PROMPTS = [{"prompt": f"Say {word}:"} for word in ("red", "blue", "green", "tree", "bird", "fish", "stone", "cloud")]

DEMONSTRATIONS = [{**row, "completion": " " + "red " * count} for count, row in enumerate(PROMPTS[:5], start=1)]
"""Five, so that two processes score differently many."""


def fixed_samples(model, prompt_ids, *, max_completion_length, eos_token_ids, **kwargs) -> Samples:
    """Completions drawn from a stream that the prompt and its occurrence seed; log-probabilities are the model's."""
    seen: dict[tuple[int, ...], int] = {}
    rows, logprobs = [], []
    for prompt in map(tuple, prompt_ids):
        seen[prompt] = seen.get(prompt, 0) + 1
        seed = zlib.crc32(repr((prompt, seen[prompt])).encode())
        draws = torch.randint(3, 300, (max_completion_length,), generator=torch.Generator().manual_seed(seed)).tolist()
        ids = draws[: 1 + seed % max_completion_length]  # lengths differ
        if len(ids) < max_completion_length:
            ids[-1] = eos_token_ids[0]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        logprobs.append(logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].tolist())
        rows.append(ids)
    return Samples(rows, logprobs, [row[-1] not in eos_token_ids for row in rows])


def main(output: Path, mode: str, batch_size: int, changes: dict[str, Any]) -> None:
    """Train and save what this process ended with."""
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    models = [tiny_llama(vocab_size=len(tokenizer), seed=seed) for seed in (0, 1, 2)]
    for model in models:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    if mode == "fixed":
        dpr.sample = fixed_samples
    trainer = DPRTrainer(
        model=models[0],
        ref_model=models[1],
        held_out_ref_model=models[2],
        args=DPRConfig(
            output_dir=str(output / "trainer"),
            max_steps=2,
            per_device_train_batch_size=batch_size,
            num_generations=4,
            max_completion_length=6,
            learning_rate=0.02,
            optim="sgd",
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            beta=0.3,
            logging_steps=1,
            save_strategy="no",
            eval_strategy="steps",
            eval_steps=1,
            predict_with_generate=False,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            seed=1,
            **{"estimator": "auto", **changes},
        ),
        train_dataset=datasets.Dataset.from_list(PROMPTS),
        eval_dataset=datasets.Dataset.from_list(DEMONSTRATIONS),
        processing_class=tokenizer,
    )
    seen = []
    inner = trainer._generate

    def recorded(prompts):
        output = inner(prompts)
        seen.append([list(ids) for ids in output[1]])
        return output

    trainer._generate = recorded
    rank, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    if mode == "nan":
        honest = trainer._compute_loss

        def planted(model, inputs):
            bad = rank == processes - 1 and trainer.state.global_step == 1
            return honest(model, inputs) * (float("nan") if bad else 1.0)

        trainer._compute_loss = planted
        try:
            trainer.train()
        except NumericalError as error:
            torch.save({"error": str(error), "processes": processes}, output / f"{rank}.pt")
            return
    trainer.train()
    weights = torch.cat([parameter.detach().flatten() for parameter in models[0].parameters()])
    rows = [row for row in trainer.state.log_history if "train_runtime" not in row]
    logs = [train | evaluation for train, evaluation in zip(rows[::2], rows[1::2], strict=True)]
    torch.save({"weights": weights, "logs": logs, "seen": seen, "processes": processes}, output / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]) if sys.argv[4:] else {})
