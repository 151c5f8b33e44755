"""Statement 4: what a token earns on average, and which way each reward pushes the length."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core import logprobs, rewards
from densepath.records.theory import StatementResult
from densepath.theory import exact, mdp
from densepath.theory.instances import Instance, instance_seed, make_instance, random_instances
from densepath.theory.tally import Tally

BETAS = (0.2, 1.0, 5.0)


def length(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 4: per state, along the sequence, and on the KL-regularised optimum's length."""
    tally = Tally()
    longer: dict[str, int] = {"baseline_relative": 0, "logprob": 0}
    for instance in random_instances(4, seed, instances):
        _per_state(tally, instance)
        _same_eos(tally, instance)
        _common_eos(tally, instance)
        before = exact.expected_length(instance.tree.mdp, instance.log_sft)
        for name, table in (("baseline_relative", instance.dense_rewards), ("logprob", instance.log_sft)):
            best = exact.soft_optimum(instance.tree.mdp, table, instance.log_sft, beta=1.0).log_policy
            longer[name] += int(exact.expected_length(instance.tree.mdp, best) > before)
    return StatementResult(
        number=4,
        key="length",
        title="E_SFT[r̂] = KL(π_SFT || π_ref) ≥ 0 at each state; log π_SFT averages -entropy ≤ 0",
        source="D (why a baseline: P)",
        assumes="tokens from π_SFT; for the optimum's length: conditions on EOS as named",
        method="enumeration; r̂ by core.rewards; soft optimum for three β",
        checks=tally.checks(),
        details={
            "instances_where_the_optimum_is_longer_than_sft": longer,
            "instances": instances,
            "running_reward": _running(seed),
        },
    )


def _per_state(tally: Tally, instance: Instance) -> None:
    tree, log_sft, log_ref = instance.tree, instance.log_sft, instance.log_ref
    everything = torch.ones_like(log_sft, dtype=torch.bool)
    dense = rewards.baseline_relative(log_sft, log_ref, everything)
    average = (log_sft.exp() * dense).sum(dim=-1)
    kl = logprobs.exact_kl(instance.sft_logits, instance.ref_logits)
    tally.equal("E_SFT[r̂(s,.)] = KL(π_SFT || π_ref), every state", average, kl)
    tally.bounded("-KL ≤ 0", -kl, 1e-14)
    alone = (log_sft.exp() * rewards.logprob(log_sft, everything)).sum(dim=-1)
    tally.equal("E_SFT[log π_SFT(s,.)] = -entropy", alone, -logprobs.entropy(instance.sft_logits))
    tally.bounded("-entropy ≤ 0", alone, 0.0)
    # the drift of the running sum, token by token, and its total over the sequence
    probs = mdp.sequence_logprobs(tree, log_sft).exp()
    earned = (probs.unsqueeze(1) * mdp.gather_tokens(tree, dense)).sum(dim=0)
    paid = (probs.unsqueeze(1) * mdp.gather_tokens(tree, log_sft)).sum(dim=0)
    tally.bounded("baseline_relative: the mean running sum never falls", -earned, 1e-14)
    tally.bounded("logprob: the mean running sum never rises", paid, 0.0)
    tally.equal("E_SFT[sum r̂] = KL of the sequences", earned.sum(), exact.sequence_kl(tree.mdp, log_sft, log_ref))
    tally.bounded("logprob: every single token costs (r ≤ 0)", mdp.gather_tokens(tree, log_sft), 0.0)


def _eos_rises(tree: mdp.TokenTree, log_policy: Tensor, log_sft: Tensor) -> Tensor:
    eos = 0 if tree.eos is None else tree.eos
    return (log_policy - log_sft)[:, eos]


def _with_stop(log_others: Tensor, stop: Tensor, eos: int) -> Tensor:
    """A policy that takes EOS with probability `stop` (states,) and else what `log_others` prefers."""
    others = log_others.clone()
    others[:, eos] = -torch.inf
    log_policy = others.log_softmax(-1) + torch.log1p(-stop).unsqueeze(1)
    log_policy[:, eos] = stop.log()
    return log_policy


def _largest_of_depth(tree: mdp.TokenTree, values: Tensor) -> Tensor:
    """The largest value among the states of the same depth, for each state."""
    layers = [values[tree.mdp.layer(t)] for t in range(tree.mdp.horizon)]
    return torch.cat([layer.max().expand_as(layer) for layer in layers])


def _same_eos(tally: Tally, instance: Instance) -> None:
    """Where both models stop equally often, r̂(EOS) = 0 and the optimum stops no sooner in any state."""
    tree, eos = instance.tree, instance.tree.eos or 0
    stop = instance.log_sft[:, eos].exp()
    by_depth = _largest_of_depth(tree, stop)
    for beta in BETAS:
        log_sft, log_ref = instance.log_sft, _with_stop(instance.log_ref, stop, eos)
        best = exact.soft_optimum(tree.mdp, log_sft - log_ref, log_sft, beta).log_policy
        rise = (best - log_sft)[:, eos]
        tally.bounded("baseline_relative, r̂(EOS) = 0: log π*(EOS|s) - log π_SFT(EOS|s) ≤ 0", rise, 1e-12)
        # stopping as likely in all states of a depth: then the length itself cannot shrink
        log_sft, log_ref = (_with_stop(table, by_depth, eos) for table in (log_sft, log_ref))
        best = exact.soft_optimum(tree.mdp, log_sft - log_ref, log_sft, beta).log_policy
        longer = exact.expected_length(tree.mdp, best) - exact.expected_length(tree.mdp, log_sft)
        tally.bounded("baseline_relative, the same P(EOS) by position: the optimum is no shorter", -longer, 1e-12)
        tally.differs("baseline_relative, the same P(EOS) by position: longer somewhere, tokens", longer)


def _common_eos(tally: Tally, instance: Instance) -> None:
    """Where EOS is the likeliest token, the optimum under log pi_SFT stops no later in any state."""
    tree, eos = instance.tree, instance.tree.eos or 0
    others = instance.log_sft.clone()
    others[:, eos] = -torch.inf
    share = others.log_softmax(-1).max(dim=1).values.exp()
    stop = share / (1 + share)  # as likely as the likeliest other token
    by_depth = _largest_of_depth(tree, stop)
    for beta in BETAS:
        log_sft = _with_stop(instance.log_sft, stop, eos)
        best = exact.soft_optimum(tree.mdp, log_sft, log_sft, beta).log_policy
        fall = (log_sft - best)[:, eos]
        tally.bounded("logprob, EOS likeliest: log π_SFT(EOS|s) - log π*(EOS|s) ≤ 0", fall, 1e-12)
        log_sft = _with_stop(instance.log_sft, by_depth, eos)
        best = exact.soft_optimum(tree.mdp, log_sft, log_sft, beta).log_policy
        shorter = exact.expected_length(tree.mdp, log_sft) - exact.expected_length(tree.mdp, best)
        tally.bounded("logprob, EOS likeliest, P(EOS) by position: the optimum is no longer", -shorter, 1e-12)
        tally.differs("logprob, EOS likeliest, P(EOS) by position: shorter somewhere, tokens", shorter)


def _running(seed: int) -> dict[str, list[float]]:
    """Mean running sum of both rewards over the tokens of a completion from the SFT policy."""
    instance = make_instance(4, 6, 1, instance_seed(seed, 4, 10_000))
    probs = mdp.sequence_logprobs(instance.tree, instance.log_sft).exp().unsqueeze(1)
    curves = {"baseline_relative": instance.dense_rewards, "logprob": instance.log_sft}
    return {
        name: (probs * mdp.gather_tokens(instance.tree, table)).sum(dim=0).cumsum(0).tolist()
        for name, table in curves.items()
    }
