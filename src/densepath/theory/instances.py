"""Random instances from seeds: token MDPs with an SFT policy, a reference and a current policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from densepath.theory import mdp as mdp_module
from densepath.theory.mdp import TokenTree

SIZES = ((3, 3, 2), (4, 3, 1), (2, 3, 1), (3, 4, 1), (5, 3, 2), (2, 5, 2))
"""(vocabulary, horizon, prompts), taken in turn."""


@dataclass(frozen=True)
class Instance:
    """One random token MDP; tables are (states, actions) float64 with rows of no particular offset."""

    tree: TokenTree
    sft_logits: Tensor
    ref_logits: Tensor
    policy_logits: Tensor
    generator: torch.Generator

    @property
    def log_sft(self) -> Tensor:
        """log pi_SFT of every state and action."""
        return self.sft_logits.log_softmax(-1)

    @property
    def log_ref(self) -> Tensor:
        """log pi_ref of every state and action."""
        return self.ref_logits.log_softmax(-1)

    @property
    def log_policy(self) -> Tensor:
        """log pi_theta of every state and action."""
        return self.policy_logits.log_softmax(-1)

    @property
    def dense_rewards(self) -> Tensor:
        """The method's reward in every state: `log pi_SFT - log pi_ref`."""
        return self.log_sft - self.log_ref

    def normal(self, *shape: int) -> Tensor:
        """Standard normal float64 numbers from the instance's own generator."""
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def table(self) -> Tensor:
        """A standard normal (states, actions) table."""
        return self.normal(*self.sft_logits.shape)


def make_instance(
    vocab: int, horizon: int, prompts: int = 1, seed: int = 0, eos: int | None = 0, spread: float = 1.5
) -> Instance:
    """A random instance.

    Args:
        vocab: number of tokens.
        horizon: completion budget.
        prompts: number of prompts; their probabilities are random.
        seed: of everything random in it.
        eos: id of EOS, or None for none.
        spread: standard deviation of the logits.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(prompts, dtype=torch.float64, generator=generator) + 0.2
    tree = mdp_module.token_tree(vocab, horizon, eos, start / start.sum())
    shape = (tree.mdp.num_states, vocab)
    sft, drift, policy = (torch.randn(*shape, dtype=torch.float64, generator=generator) for _ in range(3))
    # the reference is a relative of the SFT policy, as an earlier checkpoint is
    return Instance(tree, spread * sft, spread * (sft + 0.6 * drift), spread * policy, generator)


def instance_seed(seed: int, statement: int, number: int) -> int:
    """A seed of its own for each instance of each statement."""
    return (seed * 1009 + statement) * 100_003 + number


def random_instances(
    statement: int, seed: int, count: int, sizes: tuple[tuple[int, int, int], ...] = SIZES
) -> Iterator[Instance]:
    """`count` instances of that statement, sizes in turn."""
    if count < 1:
        raise ValueError(f"need at least one instance, got {count}")
    for number in range(count):
        vocab, horizon, prompts = sizes[number % len(sizes)]
        yield make_instance(vocab, horizon, prompts, instance_seed(seed, statement, number))


def rare_habit() -> Instance:
    """One token, a common one or a rare one: SFT takes the rare one once in 100 times, the reference in 10,000."""
    instance = make_instance(2, 1)
    sft, ref = (torch.tensor([[1 - rare, rare]], dtype=torch.float64).log() for rare in (1e-2, 1e-4))
    return Instance(instance.tree, sft, ref, sft, instance.generator)


@dataclass(frozen=True)
class Mixture:
    """Behaviours on a token MDP, and two models that show them in different shares.

    Args:
        tree: the token MDP.
        behaviours: (behaviours, sequences) float64, log-probability of each sequence given its prompt.
        sft_shares: (behaviours,) float64, their shares in the demonstrations, which the SFT policy has learned.
        ref_shares: (behaviours,) float64, their shares in the reference.
    """

    tree: TokenTree
    behaviours: Tensor
    sft_shares: Tensor
    ref_shares: Tensor

    @property
    def log_sft(self) -> Tensor:
        """log pi_SFT of every state and action."""
        return self.policy(self.sft_shares)

    @property
    def log_ref(self) -> Tensor:
        """log pi_ref of every state and action."""
        return self.policy(self.ref_shares)

    def policy(self, shares: Tensor) -> Tensor:
        """The mixture in these shares, token by token: (states, actions)."""
        return mdp_module.token_policy(self.tree, (self.behaviours + shares.log().unsqueeze(1)).logsumexp(dim=0))


def overlapping_mixture(instance: Instance, behaviours: int = 3) -> Mixture:
    """Random policies as behaviours: every sequence is possible under each of them."""
    tree = instance.tree
    start = tree.mdp.start.log()[tree.prompts]
    tables = [mdp_module.sequence_logprobs(tree, instance.table().log_softmax(-1)) - start for _ in range(behaviours)]
    return Mixture(tree, torch.stack(tables), *_two_shares(instance, behaviours))


def disjoint_mixture(instance: Instance, behaviours: int = 3) -> Mixture:
    """Behaviours that share no sequence; each has one at least for every prompt."""
    tree = instance.tree
    weights, table = instance.normal(len(tree.sequences)), []
    owner = torch.empty_like(tree.prompts)
    for prompt in range(tree.mdp.start.shape[0]):
        rows = (tree.prompts == prompt).nonzero().squeeze(1)
        owner[rows] = torch.randperm(len(rows), generator=instance.generator) % behaviours
    for behaviour in range(behaviours):
        row = torch.full_like(weights, -torch.inf)
        for prompt in range(tree.mdp.start.shape[0]):
            own = (tree.prompts == prompt) & (owner == behaviour)
            row[own] = weights[own].log_softmax(0)
        table.append(row)
    return Mixture(tree, torch.stack(table), *_two_shares(instance, behaviours))


def _two_shares(instance: Instance, behaviours: int) -> tuple[Tensor, Tensor]:
    sft, ref = instance.normal(2, behaviours).softmax(-1)
    return sft, ref
