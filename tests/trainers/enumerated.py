"""DPRTrainer on a token MDP that can be enumerated: a tiny transformer over a few tokens, and the trainer's own parts.

Whatever the trainer could sample is put in place of what it samples; rewards, returns, baseline, forward passes and
loss are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from tests.oracle import batch_distribution, policy_table, sequence_probs, tiny_llama, token_tree
from torch import Tensor

from densepath.theory.mdp import gather_tokens
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig

EOS, BETA, PROMPT = 0, 0.7, [1, 2]


class Enumerated:
    """A trainer, its token tree, and the tables of its models.

    Args:
        folder: output directory.
        tokenizer: any; no text is read.
        vocab: tokens, EOS included.
        horizon: budget of a completion.
        refs: seeds of the references.
        scale: of the models' weights; the smaller, the softer their distributions.
        from_sft: whether the policy begins as the SFT policy; else as another model.
        changes: arguments of `DPRConfig`.
    """

    def __init__(
        self,
        folder,
        tokenizer,
        vocab: int = 3,
        horizon: int = 2,
        refs: Sequence[int] = (3,),
        scale: float = 0.6,
        from_sft: bool = False,
        **changes,
    ):
        self.policy, self.sft, *models = (tiny_llama(vocab, seed, scale) for seed in (2 if from_sft else 1, 2, *refs))
        self.tree = token_tree(vocab, horizon, EOS)
        tables = [policy_table(m, PROMPT, vocab, horizon, EOS) for m in (self.policy, self.sft, *models)]
        self.table, self.sft_table = tables[0], tables[1].detach()
        self.ref_tables = [table.detach() for table in tables[2:]]
        arguments = {
            "per_device_train_batch_size": 2,
            "num_generations": 2,
            "max_completion_length": horizon,
            "max_steps": 1,
            "beta": BETA,
            "estimator": "auto",
            "report_to": "none",
            "gradient_checkpointing": False,
            **changes,
        }
        self.trainer = DPRTrainer(
            model=self.policy,
            ref_model=models[0] if len(models) == 1 else models,
            sft_model=self.sft,
            args=DPRConfig(output_dir=str(folder), **arguments),
            train_dataset=Dataset.from_list([{"prompt": "x"}] * 2),
            processing_class=tokenizer,
        )
        self.trainer.eos_token_ids = [EOS]
        self.trainer.current_gradient_accumulation_steps = 1
        self.trainer.model.train()

    def completions(self, rows: Sequence[int]) -> list[list[int]]:
        """Token ids of sequences of the tree."""
        return [self.tree.sequences[row][self.tree.mask[row]].tolist() for row in rows]

    def rollout(self, rows: Sequence[int], sampler: Tensor | None = None) -> dict[str, Any]:
        """The trainer's rollout with these sequences in place of samples.

        Args:
            rows: indices of sequences, completions of one prompt being neighbours.
            sampler: (states, actions) log-probabilities that they were sampled with; the policy's by default.
        """
        table = self.table.detach() if sampler is None else sampler
        logprobs = gather_tokens(self.tree, table)
        sampled = [logprobs[row][self.tree.mask[row]].tolist() for row in rows]
        ids = self.completions(rows)
        self.trainer._tokenize_prompts = lambda prompts: ([PROMPT] * len(prompts), None, {})
        self.trainer._generate_single_turn = lambda *args: (ids, sampled)
        return self.trainer._generate_and_score_completions([{"prompt": "x"}] * len(rows))

    def gradient(self, inputs: dict[str, Any]) -> Tensor:
        """Ascent direction of the trainer's loss, flattened over the policy's parameters."""
        self.policy.zero_grad()
        self.trainer._compute_loss(self.trainer.model, inputs).backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.policy.parameters()]
        return -torch.cat([gradient.flatten() for gradient in found])

    def expected_gradient(self) -> Tensor:
        """Over every batch of two completions that the policy could sample: any baseline."""
        rows, probs = batch_distribution(self.tree, sequence_probs(self.tree, self.table), 2)
        return sum(
            probability.detach() * self.gradient(self.rollout(batch))
            for batch, probability in zip(rows.tolist(), probs, strict=True)
        )

    def expected_gradient_alone(self, sampler: Tensor | None = None) -> Tensor:
        """Over every single completion: for estimators in which completions do not see one another.

        Args:
            sampler: log-probabilities of what samples; the policy's by default.
        """
        return sum(
            weight * self.gradient(one) for weight, one in self.each(self.table if sampler is None else sampler)
        )

    def each(self, sampler: Tensor) -> list[tuple[Tensor, dict[str, Any]]]:
        """(probability, micro-batch of one completion) for every completion, from one rollout of them all."""
        probs = sequence_probs(self.tree, sampler).detach()
        rows = list(range(len(probs)))
        rows += rows[-1:] * (len(rows) % 2)  # TRL wants whole groups
        output = self.rollout(rows, sampler.detach())
        return [(probs[row], {name: _row(value, row) for name, value in output.items()}) for row in range(len(probs))]

    def gradient_of(self, scalar: Tensor) -> Tensor:
        """Gradient of a function of `table`, flattened likewise."""
        parameters = list(self.policy.parameters())
        found = torch.autograd.grad(scalar, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, found, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def _row(value: Any, row: int) -> Any:
    return value if isinstance(value, Tensor) and value.ndim == 0 else value[row : row + 1]


Truth = Callable[[Enumerated], Tensor]
"""What an estimator's expectation should be: a scalar whose gradient it is."""
