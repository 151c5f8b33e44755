"""Dense-Path REINFORCE in one file: from an SFT model and a reference of it to an improved policy.

    python examples/dpr_loop.py --sft SFT --ref REFERENCE --prompts prompts.jsonl --output improved

Where this departs from the paper (Li, Vu, Abbasnejad, Haffari, arXiv 2510.02493), or fills in what it leaves open:

1. The KL to SFT is inside of the return, not a loss beside it, so that later states count. Then the one fixed point is
   the optimum `pi* ~ pi_SFT^(1 + 1/beta) pi_ref^(-1/beta)` (docs/theory.md, statement 5).
2. The baseline of a token is the mean return of the batch's *other* completions at its position: it does not depend on
   the token, so the gradient stays unbiased.
3. The loss is summed over tokens and divided by the number of completions, a constant. Dividing by tokens biases it.
4. EOS is an action and earns a reward. A completion that the budget cuts off keeps its reward, and has no EOS.
5. The reference is any model of the same tokenizer; the paper's is the checkpoint at half of the SFT samples.
6. beta = 0.5, and 4 completions of each of 8 prompts a step, are ours.

`DPRTrainer` takes the same step (tests/trainers/test_dpr_loop.py) and adds what a real run needs: packing, adapters,
several devices, checkpoints that resume to the bit, monitors, early stopping.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from densepath.core.logprobs import token_logprobs
from densepath.core.masks import lengths_to_mask, masked_sum
from densepath.core.objective import kl_estimate, reinforce_loss
from densepath.core.returns import kl_penalised_rewards, position_mean_baseline, returns_to_go
from densepath.core.rewards import baseline_relative
from densepath.data.encode import encode_row_prompt
from densepath.data.formats import load_dataset_rows
from densepath.models.load import disable_dropout, eos_token_ids, freeze, load_model, load_tokenizer
from densepath.models.sampling import sample
from densepath.models.scoring import score_completions

Ids = Sequence[Sequence[int]]


class Batch(NamedTuple):
    """One row for each completion: its prompt's ids, its own, EOS included, and the log-probabilities at sampling."""

    prompts: Ids
    completions: Ids
    logprobs: Sequence[Sequence[float]]


def padded(rows: Sequence[Tensor]) -> Tensor:
    """(completions, tokens) of ragged rows, zeros on the right."""
    return pad_sequence(list(rows), batch_first=True)


def policy_logprobs(policy: Any, prompts: Ids, completions: Ids) -> Tensor:
    """log pi_theta of each completion token, (completions, tokens) with gradient, nats: one padded forward pass."""
    rows = [torch.tensor([*prompt, *completion]) for prompt, completion in zip(prompts, completions, strict=True)]
    ids = padded(rows)
    attended = lengths_to_mask(torch.tensor([len(row) for row in rows]), ids.shape[1])
    logits = policy(input_ids=ids, attention_mask=attended.long()).logits
    logprobs = token_logprobs(logits[:, :-1], ids[:, 1:])  # the token at a position is predicted by the one before
    ends = [(len(prompt) - 1, len(row) - 1) for prompt, row in zip(prompts, rows, strict=True)]
    return padded([values[start:end] for values, (start, end) in zip(logprobs, ends, strict=True)])


def advantages_of(
    policy_lp: Tensor, sft_lp: Tensor, ref_lp: Tensor, mask: Tensor, beta: float
) -> tuple[Tensor, dict[str, float]]:
    """What multiplies each token's score function, and how the batch did. All tensors are (completions, tokens).

    Args:
        policy_lp: log-probabilities of the sampled tokens under the policy, nats; constants here.
        sft_lp: the same under the SFT model.
        ref_lp: the same under the reference.
        mask: bool, True = counts, EOS included.
        beta: coefficient of the KL to SFT.
    """
    rewards = baseline_relative(sft_lp, ref_lp, mask)  # r_t = log pi_SFT - log pi_ref: the dense reward inside SFT
    penalised = kl_penalised_rewards(rewards, policy_lp, sft_lp, beta, mask)  # q_t = r_t - beta log pi_theta / pi_SFT
    returns = returns_to_go(penalised, mask)  # G_t = sum_{k >= t} q_k, undiscounted
    advantages = returns - position_mean_baseline(returns, mask)  # A_t = G_t - b_t
    kl = kl_estimate(policy_lp, sft_lp, mask).mean()
    reward = masked_sum(rewards, mask, dim=1).mean()
    return advantages, {"reward": float(reward), "kl": float(kl), "length": float(mask.sum() / len(mask))}


def loss_of(policy: Any, sft: Any, ref: Any, batch: Batch, beta: float) -> tuple[Tensor, dict[str, float]]:
    """REINFORCE on completions that the policy just sampled: `-(1/n) sum_{i,t} log pi_theta(a_t|s_t) A_{i,t}`."""
    prompts, completions, logprobs = batch
    mask = lengths_to_mask(torch.tensor([len(ids) for ids in completions]), max(map(len, completions)))
    sft_lp, ref_lp = (padded(score_completions(model, prompts, completions).logprobs) for model in (sft, ref))
    policy_lp = padded([torch.tensor(row) for row in logprobs])
    advantages, metrics = advantages_of(policy_lp, sft_lp, ref_lp, mask, beta)
    loss, _ = reinforce_loss(policy_logprobs(policy, prompts, completions), advantages, mask, len(completions))
    return loss, metrics


def step(
    policy: Any, sft: Any, ref: Any, optimizer: torch.optim.Optimizer, batch: Batch, beta: float
) -> dict[str, float]:
    """One update of the policy on a batch."""
    loss, metrics = loss_of(policy, sft, ref, batch, beta)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Train, and save the policy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("sft", "ref", "prompts", "output"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in (("steps", 25), ("num_generations", 4), ("prompts_a_step", 8), ("max_completion_length", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, value in (("beta", 0.5), ("learning_rate", 1e-6)):
        parser.add_argument(f"--{name}", type=float, default=value)
    args = parser.parse_args(argv)
    tokenizer, policy = load_tokenizer(args.sft), load_model(args.sft, for_training=True)
    disable_dropout(policy)  # else what is trained is another distribution than the one that was sampled from
    sft, ref = freeze(copy.deepcopy(policy)), load_model(args.ref)
    asked = [encode_row_prompt(row, tokenizer) for row in load_dataset_rows(args.prompts, needs="prompts")]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.learning_rate, weight_decay=0.0)
    draws, generator = random.Random(0), torch.Generator().manual_seed(0)
    for number in range(1, args.steps + 1):
        chosen = draws.sample(asked, min(args.prompts_a_step, len(asked)))
        samples = sample(
            policy,
            chosen,
            num_generations=args.num_generations,
            max_completion_length=args.max_completion_length,
            eos_token_ids=eos_token_ids(policy, tokenizer),
            generator=generator,
        )
        prompts = [prompt for prompt in chosen for _ in range(args.num_generations)]
        batch = Batch(prompts, samples.completion_ids, samples.logprobs)
        metrics = step(policy, sft, ref, optimizer, batch, args.beta)
        print(f"step {number}: " + ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()), flush=True)
    policy.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)


if __name__ == "__main__":
    main()
