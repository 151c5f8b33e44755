"""Variance of the gradient estimates on a real model: sampled, all actions, and their mixture, on the same samples.

    python -m benchmarks.estimator_variance --sft SFT --ref REF --dataset_name prompts.jsonl

The variance is the trace of the covariance over batches, `(sum |g|^2 - n |mean g|^2) / (n - 1)`. With --extrapolate a
the policy is moved to `theta_SFT + a (theta_SFT - theta_ref)`: towards where training leads.

At the end: the share of batches whose gradient `max_grad_norm` would cut, had the loss been divided by the number of
completions, by that times `max_completion_length` (TRL's dr_grpo), or by the number of tokens.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics
import tempfile

import torch

from benchmarks.words import Parser, count, run_command
from densepath.core.objective import Normalizer
from densepath.data.formats import load_dataset_rows
from densepath.models.load import load_model, load_tokenizer
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.rollout import credit_of, loss_mask

ARMS = {"sampled": 0.0, "all_action": 1.0, "mixture": None}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    rows = load_dataset_rows(options.dataset_name, needs="prompts").shuffle(seed=0)
    sft, ref = load_model(options.sft), load_model(options.ref)
    policy = load_model(options.sft, for_training=True)
    with torch.no_grad():
        for mine, theirs in zip(policy.parameters(), ref.parameters(), strict=True):
            mine += options.extrapolate * (mine - theirs)
    trainer = DPRTrainer(
        model=policy,
        ref_model=ref,
        sft_model=sft,
        args=DPRConfig(
            tempfile.mkdtemp(),
            per_device_train_batch_size=options.prompts * options.num_generations,
            num_generations=options.num_generations,
            max_completion_length=options.max_completion_length,
            beta=options.beta,
            estimator="all_action",
            report_to="none",
            gradient_checkpointing=False,
            use_cpu=True,
        ),
        train_dataset=rows,
        processing_class=load_tokenizer(options.sft),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    size = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    sums = {name: torch.zeros(size) for name in ARMS}
    squares = dict.fromkeys(ARMS, 0.0)
    norms: dict[str, list[float]] = {name: [] for name in ARMS}
    lengths: list[float] = []
    prompts = itertools.cycle(rows)
    for done in range(1, options.batches + 1):
        chosen = [{"prompt": row["prompt"]} for row in itertools.islice(prompts, options.prompts)]
        trainer.state.global_step = done  # seeds the sampler
        inputs = trainer._generate_and_score_completions(
            [row for row in chosen for _ in range(options.num_generations)]
        )
        for name, weight in ARMS.items():
            # weight 0 is the sampled estimate, made from the same batch
            estimator = dataclasses.replace(
                trainer.estimator, all_action=weight != 0, all_action_weight=weight or None
            )
            trainer.estimation = dataclasses.replace(trainer.estimation, estimator=estimator)
            credit = credit_of(trainer.rollout.batch, estimator, options.num_generations, trainer.accelerator)
            advantages, shares = credit.advantages, credit.shares
            policy.zero_grad()
            loss = trainer._compute_loss(policy, {**inputs, "advantages": advantages, "all_action_weights": shares})
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in policy.parameters() if p.requires_grad])
            sums[name] += gradient
            norms[name].append(float(gradient.double().norm()))
            squares[name] += norms[name][-1] ** 2
        kl = trainer._metrics["train"]["kl_sequence"][-1]
        length = float(loss_mask(inputs).sum()) / len(advantages)
        lengths.append(length)
        print(
            f"batch {done}: KL {kl:.3f} nats, {length:.0f} tokens, share {float(shares.mean()):.2f}",
            flush=True,
        )
        if done > 1:
            variances = {
                name: (squares[name] - float(sums[name].double().square().sum()) / done) / (done - 1) for name in ARMS
            }
            print("  " + ", ".join(f"{name} {value:.4g}" for name, value in variances.items()), flush=True)
    print_clipped(norms, lengths, options.max_completion_length, trainer.args.max_grad_norm)


def print_clipped(norms: dict[str, list[float]], lengths: list[float], longest: int, limit: float) -> None:
    """Share of the batches whose gradient is above `limit`, by what the sum over the batch is divided by."""
    divisors = {
        Normalizer.COMPLETIONS: [1.0] * len(lengths),
        Normalizer.MAX_COMPLETION_LENGTH: [float(longest)] * len(lengths),
        Normalizer.TOKENS: lengths,
    }
    print(f"{'estimator':<14}{'divided by':<24}{'median norm':>12}{f'above {limit:g}':>10}")
    for name, kind in itertools.product(norms, divisors):
        found = [norm / divisor for norm, divisor in zip(norms[name], divisors[kind], strict=True)]
        share = sum(norm > limit for norm in found) / len(found)
        print(f"{name:<14}{kind.value:<24}{statistics.median(found):>12.3g}{share:>10.0%}")


def arguments() -> argparse.Namespace:
    found = Parser(__doc__)
    found.add_argument("--sft", required=True)
    found.add_argument("--ref", required=True)
    found.add_argument("--dataset_name", required=True)
    found.add_argument("--batches", type=count, default=12)
    found.add_argument("--prompts", type=count, default=4)
    found.add_argument("--num-generations", type=count, default=4)
    found.add_argument("--max_completion_length", type=count, default=64)
    found.add_argument("--beta", type=float, default=0.5)
    found.add_argument("--extrapolate", type=float, default=0.0)
    found.add_argument("--threads", type=count, default=torch.get_num_threads())
    return found.parse_args()


if __name__ == "__main__":
    run_command(main)
