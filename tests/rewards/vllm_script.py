"""What vLLM says of a pair of models, and what densepath says: `python -m tests.rewards.vllm_script OUTPUT`."""

from __future__ import annotations

import functools
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tests.rewards.vllm_models import saved_pair

from densepath.cli.main import main as densepath
from densepath.models.sampling import Samples, sample
from densepath.models.scoring import score_completions
from densepath.rewards.dense import DenseReward
from densepath.rewards.vllm_policy import load_vllm_policies

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
COMPLETIONS = [[20, 21, 1], [22, 23, 24, 25], [30]]
DRAWS = 4000


def main(output: Path) -> None:
    """Score, sample and run both commands."""
    sft, ref = saved_pair(output)
    load = functools.partial(load_vllm_policies, token_budget=2048)
    rewards = DenseReward.from_models(sft, ref, load=load), DenseReward.from_models(sft, ref)
    scores = [reward.score_ids(PROMPTS, COMPLETIONS) for reward in rewards]
    policy, model = rewards[0].sft, rewards[1].sft.model
    given = {"max_completion_length": 12, "eos_token_ids": [1]}
    drawn, again = (Samples(*policy.sample(PROMPTS, num_generations=4, seed=5, **given)) for _ in range(2))
    own = score_completions(model, [p for p in PROMPTS for _ in range(4)], drawn.completion_ids).logprobs
    greedy = (
        Samples(*policy.sample(PROMPTS, temperature=0.0, **given)),
        sample(model, PROMPTS, temperature=0.0, **given),
    )
    one, *_ = policy.sample(PROMPTS[:1], num_generations=DRAWS, seed=7, max_completion_length=1, eos_token_ids=[1])
    logits = model(input_ids=torch.tensor(PROMPTS[:1])).logits[0, -1].detach().double()
    found = {
        "scores": [(each.rewards, each.sft_logprobs, each.ref_logprobs) for each in scores],
        "drawn": asdict(drawn),
        "again": asdict(again),
        "own": own,
        "greedy": [asdict(each) for each in greedy],
        "counts": torch.bincount(torch.tensor(one)[:, 0], minlength=len(logits)),
        "probs": logits.softmax(-1),
    }
    torch.save(found, output / "found.pt")
    shared = ["--dataset_name", "text_tasks", "--max_samples", "4", "--model_name_or_path", str(sft)]
    score = ["score", *shared, "--ref_model_name_or_path", str(ref), "--output_file"]
    generate = ["generate", *shared, "--max_completion_length", "8", "--output_file"]
    for words in (score, generate):
        for name, engine in (("own", []), ("vllm", ["--use_vllm", "True"])):
            assert densepath([*words, str(output / f"{words[0]}-{name}.jsonl"), *engine]) == 0


if __name__ == "__main__":
    main(Path(sys.argv[1]))
