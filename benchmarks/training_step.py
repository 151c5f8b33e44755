"""One step of the policy on given completions: TRL's pass against the packed one, sampled against all actions.

    python -m benchmarks.training_step [--prompts 8] [--num-generations 4]

The first table is the policy's forward and backward pass. The second is all of a `DPRTrainer` step but sampling and
optimizer: scoring the frozen models (the SFT model and one reference of its size), advantages, forward and backward.
Completions are those of the text tasks, or of real lengths with `--real` or `--dataset_name`.
"""

from __future__ import annotations

import copy
import functools
import tempfile

import torch
from datasets import Dataset
from trl.trainer.utils import add_fused_lm_head

from benchmarks.common import batch, keep, load, parser, peaks, print_peak, rows, side_by_side
from densepath.models.packed_forward import add_packed_forward
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig

OUTPUTS = ("log_probs", "entropy")
ESTIMATORS = ("sampled", "all_action")


def policy_pass(plain, prompt_ids, completion_ids, rounds: int) -> dict[str, dict[str, float]]:
    """TRL's fused head alone against the packed pass in front of it."""
    packed = copy.deepcopy(plain)
    for model in (plain, packed):
        model.train().requires_grad_(True)
        add_fused_lm_head(model, outputs=OUTPUTS)
    add_packed_forward(packed)
    rows = [p + c for p, c in zip(prompt_ids, completion_ids, strict=True)]
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor(
            [
                [-100] * len(p) + c + [-100] * (width - len(p) - len(c))
                for p, c in zip(prompt_ids, completion_ids, strict=True)
            ]
        ),
    }

    def step(model) -> None:
        model.zero_grad()
        model(**inputs, fused_lm_head=True).loss.backward()

    return side_by_side(
        {"TRL's fused head": lambda: step(plain), "packed, prompts shared": lambda: step(packed)}, rounds
    )


def trainer_of(model, tokenizer, prompt_ids, completion_ids, num_generations: int, estimator: str) -> DPRTrainer:
    """A trainer whose sampler gives these completions; its reference is a copy of the model, which costs as much."""
    longest = max(map(len, completion_ids))
    trainer = DPRTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=DPRConfig(
            tempfile.mkdtemp(),
            per_device_train_batch_size=len(prompt_ids),
            num_generations=num_generations,
            max_completion_length=longest,
            estimator=estimator,
            report_to="none",
            gradient_checkpointing=False,
            use_cpu=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "x"}] * len(prompt_ids)),
        processing_class=tokenizer,
    )
    logprobs = [[-1.0] * len(ids) for ids in completion_ids]
    trainer._tokenize_prompts = lambda prompts: (prompt_ids, None, {})
    trainer._generate_single_turn = lambda *args: (completion_ids, logprobs)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return trainer


def step_of(trainer: DPRTrainer) -> None:
    """Score, advantages, forward and backward."""
    inputs = trainer._generate_and_score_completions([{"prompt": "x"}] * len(trainer._tokenize_prompts(None)[0]))
    trainer.model.zero_grad()
    trainer._compute_loss(trainer.model, inputs).backward()


def main() -> None:
    options_of = parser(__doc__ or "")
    options_of.add_argument("--real", action="store_true", help="made-up rows of real lengths")
    options = options_of.parse_args()
    torch.set_num_threads(options.threads)
    memory = {} if options.only else peaks("benchmarks.training_step", ESTIMATORS)
    model, tokenizer = load(options.model)
    model.requires_grad_(True)
    short = not options.real and options.dataset_name is None
    given = batch(tokenizer, options.prompts, options.num_generations) if short else rows(options, tokenizer)
    if options.only:
        step_of(trainer_of(model, tokenizer, *given, options.num_generations, options.only))
        print_peak()
        return
    tokens = sum(map(len, given[1]))
    print(f"{len(given[1])} completions of {tokens} tokens\n")
    passes = policy_pass(copy.deepcopy(model), *given, options.rounds)
    trainers = {
        name: trainer_of(copy.deepcopy(model), tokenizer, *given, options.num_generations, name)
        for name in ESTIMATORS[::-1]
    }
    steps = side_by_side(
        {name: functools.partial(step_of, trainer) for name, trainer in trainers.items()}, options.rounds
    )
    keep(options, completion_tokens=tokens, policy_pass=passes, step=steps, peak_bytes=memory)


if __name__ == "__main__":
    main()
