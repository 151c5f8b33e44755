"""Statement 2: the reward inside the logits, what its offset does, and its log-probability form."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core import logprobs, rewards
from densepath.records.theory import StatementResult
from densepath.theory import exact, mdp
from densepath.theory.instances import Instance, random_instances
from densepath.theory.mdp import TokenTree
from densepath.theory.tally import Tally

SLIP = 0.3


def inverse_bellman(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 2 on tables and on the token tensors that the product computes."""
    tally = Tally()
    for instance in random_instances(2, seed, instances):
        _round_trip(tally, instance)
        _readings(tally, instance)
        _offset(tally, instance)
        _stochastic(tally, instance)
    return StatementResult(
        number=2,
        key="inverse-bellman",
        title="r = Q - V(s') has the SFT policy as soft optimum; log π_SFT = r + V(s') - V(s)",
        source="P; invariance and truncation D",
        assumes="deterministic transitions, V(end) known (0 after EOS)",
        method="round trip through backward induction; core.rewards on every sequence",
        checks=tally.checks(),
    )


def _round_trip(tally: Tally, instance: Instance) -> None:
    mdp_, q = instance.tree.mdp, instance.sft_logits
    for gamma in (1.0, 0.9):
        reward = exact.inverse_soft_bellman(mdp_, q, gamma)
        best = exact.soft_optimum(mdp_, reward, gamma=gamma)
        tally.equal("soft-optimal Q of the recovered reward is Q", best.q, q)
        tally.equal("its soft-optimal policy is the SFT policy", best.log_policy, instance.log_sft)
        tally.equal("Q is the soft Bellman operator's fixed point", exact.soft_bellman(mdp_, q, reward, gamma), q)


def _values_along(tree: TokenTree, values: Tensor, final: Tensor) -> Tensor:
    """(sequences, horizon + 1): V of every state passed, the one after the last token included."""
    everything = torch.cat([values, final])
    after = everything[tree.mdp.next_states[tree.states, tree.sequences, 0]]
    return torch.cat([values[tree.states[:, :1]], after], dim=1)


def _readings(tally: Tally, instance: Instance) -> None:
    tree, q = instance.tree, instance.sft_logits
    values = q.logsumexp(dim=-1)
    # the model goes on having logits where the budget cuts; after EOS the value is 0
    final = instance.normal(tree.mdp.num_ends)
    final[0] = 0.0
    table = exact.inverse_soft_bellman(tree.mdp, q, final=final)
    action_logits = mdp.gather_tokens(tree, q)
    along = _values_along(tree, values, final)
    read = rewards.inverse_bellman(action_logits, along, tree.mask, ~tree.truncated)
    tally.equal("token reading = table (EOS and truncated rows)", read, mdp.gather_tokens(tree, table))
    scored = logprobs.token_logprobs(q[tree.states], tree.sequences)
    dense = rewards.logprob(scored, tree.mask)
    tally.equal("log π_SFT = r + V(s') - V(s), every token", dense, torch.where(
        tree.mask, read + along[:, 1:] - along[:, :-1], torch.zeros_like(read)
    ))  # fmt: skip
    ends = along.gather(1, tree.mask.sum(dim=1, keepdim=True)).squeeze(1)
    total = dense.sum(dim=1) + along[:, 0] - ends
    tally.equal("sum of r = sum of log π + V(s_0) - V(end)", read.sum(dim=1), total)


def _offset(tally: Tally, instance: Instance) -> None:
    tree, q = instance.tree, instance.sft_logits
    offset = instance.normal(tree.mdp.num_states)
    shifted = q + offset.unsqueeze(1)
    before, after = (exact.inverse_soft_bellman(tree.mdp, logits) for logits in (q, shifted))
    expected = before + offset.unsqueeze(1) - exact.next_values(tree.mdp, offset)
    tally.equal("logits + c(s): r changes by c(s) - c(s')", after, expected)
    tally.equal(
        "logits + c(s): the soft-optimal policy stays",
        exact.soft_optimum(tree.mdp, after).log_policy,
        instance.log_sft,
    )
    sums = [mdp.gather_tokens(tree, table).sum(dim=1) for table in (before, after)]
    first = offset[tree.states[:, 0]]
    tally.equal("logits + c(s): a sequence's sum changes by c(s_0) alone", sums[1], sums[0] + first)
    scored = [logprobs.token_logprobs(logits[tree.states], tree.sequences) for logits in (q, shifted)]
    tally.equal("logits + c(s): the log-probability reading stays", scored[0], scored[1])
    tally.differs("logits + c(s): r itself does not stay", (after - before).abs().max())


def _stochastic(tally: Tally, instance: Instance) -> None:
    slipping = mdp.slippery(instance.tree.mdp, SLIP)
    q = instance.sft_logits
    values = q.logsumexp(dim=-1)
    reward = exact.inverse_soft_bellman(slipping, q)
    in_mean = reward + exact.next_values(slipping, values) - values.unsqueeze(1)
    tally.equal("stochastic transitions: the identity holds in expectation over s'", in_mean, instance.log_sft)
    everything = torch.cat([values, values.new_zeros(slipping.num_ends)])
    per_outcome = (reward - values.unsqueeze(1)).unsqueeze(2) + everything[slipping.next_states]
    happens = slipping.next_probs > 0
    off = (per_outcome - instance.log_sft.unsqueeze(2))[happens].abs().max()
    tally.differs("stochastic transitions: for the s' that happened it does not", off)
