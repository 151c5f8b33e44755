"""Statement 1: the summed SFT loss is minus the IQ-Learn objective, in value and gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from densepath.core import objective
from densepath.records.theory import StatementResult
from densepath.theory import conjugate, exact, mdp
from densepath.theory.instances import Instance, random_instances
from densepath.theory.mdp import FiniteMDP, TokenTree
from densepath.theory.tally import Tally

SLIP = 0.3
GAMMA = 0.9
DEMONSTRATIONS = 12


def sft_is_iq_learn(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 1 on random logits, experts and demonstration sets; and where it ends."""
    tally = Tally()
    for instance in random_instances(1, seed, instances):
        _deterministic(tally, instance)
        _discounted(tally, instance)
        _averaged(tally, instance)
        _stochastic(tally, instance)
    return StatementResult(
        number=1,
        key="sft-is-iq-learn",
        title="summed SFT loss = -IQ-Learn objective, value and gradient",
        source="P (the equality); telescoping D",
        assumes="γ = 1, linear conjugate, observed s' (deterministic), V(end) = 0",
        method="expert enumerated, and sets of demonstrations; gradient in Q by autograd",
        checks=tally.checks(),
    )


def _value_and_gradient(value: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient


def _sft(tree: TokenTree, logits: Tensor, weights: Tensor, per_token: Tensor | float = 1.0) -> Tensor:
    """The project's own SFT loss over every sequence, weighted; `per_token` scales the single tokens."""
    logprobs = mdp.gather_tokens(tree, logits.log_softmax(-1))
    return objective.sft_loss(logprobs * weights.unsqueeze(1) * per_token, tree.mask)[0]


def _counts(mdp_: FiniteMDP, states: Tensor, actions: Tensor, mask: Tensor) -> Tensor:
    """How often each (state, action) occurs, per trajectory."""
    table = torch.zeros(mdp_.num_states, mdp_.num_actions, dtype=torch.float64)
    ones = mask.double() / states.shape[0]
    return table.index_put((states, actions), ones, accumulate=True)


def _deterministic(tally: Tally, instance: Instance) -> None:
    tree = instance.tree
    logits = instance.sft_logits.clone().requires_grad_()
    probs = mdp.sequence_logprobs(tree, instance.log_policy).exp()
    drawn = torch.multinomial(probs, DEMONSTRATIONS, replacement=True, generator=instance.generator)
    sets = {
        "expert's whole distribution": (exact.occupancy(tree.mdp, instance.log_policy), probs),
        "finite set of demonstrations": (
            _counts(tree.mdp, tree.states[drawn], tree.sequences[drawn], _counting(tree)[drawn]),
            torch.bincount(drawn, minlength=len(probs)).double() / DEMONSTRATIONS,
        ),
    }
    for name, (occupancy, weights) in sets.items():
        j, j_gradient = _value_and_gradient(conjugate.iq_objective(tree.mdp, logits, occupancy), logits)
        loss, loss_gradient = _value_and_gradient(_sft(tree, logits, weights), logits)
        tally.equal(f"{name}: value", -j, loss)
        tally.equal(f"{name}: gradient", -j_gradient, loss_gradient)
    offset = instance.normal(tree.mdp.num_states, 1)
    shifted = conjugate.iq_objective(tree.mdp, instance.sft_logits + offset, sets[name][0])
    tally.equal("J(Q + c(s)) = J(Q)", shifted, j)


def _counting(tree: TokenTree) -> Tensor:
    """Which tokens the demonstrations hold, from EOS and length alone, not from the tree's mask."""
    lengths = torch.where(tree.truncated, tree.sequences.shape[1], 0)
    if tree.eos is not None:
        first_eos = (tree.sequences == tree.eos).double().argmax(dim=1) + 1
        lengths = torch.where(tree.truncated, lengths, first_eos)
    return torch.arange(tree.sequences.shape[1]) < lengths.unsqueeze(1)


def _discounted(tally: Tally, instance: Instance) -> None:
    tree = instance.tree
    logits = instance.sft_logits.clone().requires_grad_()
    occupancy = exact.occupancy(tree.mdp, instance.log_policy)
    weights = mdp.sequence_logprobs(tree, instance.log_policy).exp()
    powers = GAMMA ** torch.arange(tree.mdp.horizon, dtype=torch.float64)
    j, j_gradient = _value_and_gradient(conjugate.iq_objective(tree.mdp, logits, occupancy, GAMMA), logits)
    weighted, weighted_gradient = _value_and_gradient(_sft(tree, logits, weights, powers), logits)
    plain, plain_gradient = _value_and_gradient(_sft(tree, logits, weights), logits)
    tally.equal("γ = 0.9, tokens weighted γ^t: value", -j, weighted)
    tally.equal("γ = 0.9, tokens weighted γ^t: gradient", -j_gradient, weighted_gradient)
    tally.differs("γ = 0.9, ordinary SFT: value is off", (plain + j).abs())
    tally.differs("γ = 0.9, ordinary SFT: gradient is off", (plain_gradient + j_gradient).abs().max())


def _averaged(tally: Tally, instance: Instance) -> None:
    tree = instance.tree
    logits = instance.sft_logits.clone().requires_grad_()
    weights = mdp.sequence_logprobs(tree, instance.log_policy).exp()
    lengths = tree.mask.sum(dim=1).double()
    occupancy = exact.occupancy(tree.mdp, instance.log_policy)
    j, j_gradient = _value_and_gradient(conjugate.iq_objective(tree.mdp, logits, occupancy), logits)
    by_batch, by_batch_gradient = _value_and_gradient(_sft(tree, logits, weights) / (weights * lengths).sum(), logits)
    tally.equal(
        "mean over all tokens: same direction, scaled",
        by_batch_gradient * occupancy.sum(),
        -j_gradient,
    )
    tally.differs("mean over all tokens: value is off", (by_batch + j).abs())
    _, own_gradient = _value_and_gradient(_sft(tree, logits, weights / lengths), logits)
    cosine = torch.cosine_similarity(own_gradient.flatten(), -j_gradient.flatten(), dim=0)
    tally.differs("mean over each sequence's tokens: 1 - cosine of gradients", 1 - cosine)


def _stochastic(tally: Tally, instance: Instance) -> None:
    slipping = mdp.slippery(instance.tree.mdp, SLIP)
    logits = instance.sft_logits.clone().requires_grad_()
    states, actions, mask = mdp.rollouts(slipping, instance.log_policy, DEMONSTRATIONS, instance.generator)
    empirical = _counts(slipping, states, actions, mask)
    population = exact.occupancy(slipping, instance.log_policy)
    for name, occupancy in (("set", empirical), ("population", population)):
        j, j_gradient = _value_and_gradient(conjugate.iq_objective(slipping, logits, occupancy), logits)
        loss, loss_gradient = _value_and_gradient(-(occupancy * logits.log_softmax(-1)).sum(), logits)
        if name == "set":
            tally.differs("stochastic transitions, demonstrations: value is off", (loss + j).abs())
            off = (loss_gradient + j_gradient).abs().max()
            tally.differs("stochastic transitions, demonstrations: gradient is off", off)
        else:
            tally.equal("stochastic transitions, in expectation over the expert: value", -j, loss)
            tally.equal("stochastic transitions, in expectation: gradient", -j_gradient, loss_gradient)
