"""Dense-Path REINFORCE (Li, Vu, Abbasnejad, Haffari): climb the reward that SFT left, `log pi_SFT - log pi_ref`.

`E_pi[sum_t r_t] - beta KL(pi || pi_SFT)` by undiscounted REINFORCE on the policy's own completions, without a critic
(`trainers.dpr`, docs/method.md). A step samples a batch and scores it under two frozen models: about 12 FLOPs a
parameter and token.
"""

from __future__ import annotations

from typing import Any

from densepath.config.mixins import TrainableArguments
from densepath.data.training_rows import demonstration_pairs, fitting_rows, longest_prompt, prompt_dataset
from densepath.io import read_log
from densepath.methods import Method, Outcome, Stage
from densepath.methods._stage import dpr_config, tokens_trained
from densepath.models.load import load_frozen, load_trainable
from densepath.models.references import EMA_NAME, reference_name
from densepath.records.arm import Budget
from densepath.rewards.frozen import FrozenPolicy
from densepath.rewards.loading import view_on_base
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.sft import save_model_atomic
from densepath.trainers.trl_config import peft_config


def train(stage: Stage) -> Outcome:
    """DPR from the SFT model; leaves `model` in the stage's folder.

    `reference` is a fraction, `ema` or a path; several fractions with commas between them are averaged.
    """
    sft, folder, arguments = stage.sft, stage.folder, stage.arguments
    beta = float(arguments.beta)
    tokenizer = sft.tokenizer()
    config = dpr_config(arguments, stage.others, folder, beta)
    rows = sft.rows("rl" if arguments.rl_prompts is not None else "train")
    longest = longest_prompt(sft.context, config.max_completion_length or 0, arguments.max_prompt_length)
    held_out = None if config.eval_strategy == "no" else sft.rows("validation")
    policy = load_trainable(arguments, sft.model)
    trainer = DPRTrainer(
        model=policy,
        ref_model=[
            frozen_reference(policy, sft.reference(name), arguments, f"ref_{index}")
            for index, name in enumerate(reference_names(arguments.reference))
        ],
        args=config,
        train_dataset=prompt_dataset(fitting_rows(rows, tokenizer, longest)),
        eval_dataset=None if held_out is None else demonstration_pairs(held_out, tokenizer, sft.context),
        processing_class=tokenizer,
        peft_config=peft_config(arguments, policy),
    )
    stage.train(trainer)
    save_model_atomic(trainer, tokenizer, folder / "model", {"beta": beta})
    rows = read_log(folder / "metrics.jsonl")
    samples, flops = (sum(row.get(name) or 0.0 for row in rows) for name in ("samples", "flops"))
    budget = Budget(samples=round(samples), tokens=tokens_trained(folder), flops=flops)
    return Outcome(budget, trainer.state.global_step)


def reference_names(reference: str) -> list[str]:
    """The references that `reference` names.

    >>> reference_names("0.25,0.5"), reference_names("models/a,b")
    (['0.25', '0.5'], ['models/a,b'])
    """
    names = [name.strip() for name in reference.split(",")]
    try:
        return [name if name == EMA_NAME else reference_name(float(name)) for name in names]
    except ValueError:
        return [reference]


def frozen_reference(policy: Any, path: str, arguments: TrainableArguments, name: str = "ref") -> FrozenPolicy | Any:
    """The reference as an adapter on the policy's base, or as that base, where it is one; else a model of its own."""
    return view_on_base(policy, path, name) or load_frozen(arguments, path)


METHOD = Method("DPR", control=False, train=train, needs_reference=True, stage="DPR")
