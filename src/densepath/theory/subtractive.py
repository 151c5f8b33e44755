"""Statement 10: subtractive decoding, token by token, is the difference of the two models' whole sequences."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from densepath.core import mixture
from densepath.core.logprobs import contrastive_logits
from densepath.records.theory import StatementResult
from densepath.theory import mdp
from densepath.theory.instances import Instance, random_instances, rare_habit
from densepath.theory.mdp import TokenTree
from densepath.theory.posterior import sequence_log_ratios
from densepath.theory.tally import Tally

SHARES = (0.5, 0.8, 0.95, 1.0)
FLOORS = (1e-3, 0.1)
ALPHAS = (0.5, 1.0, 2.0, 4.0)
TINY = 1e-9
"""A floor that no posterior of the exact cases comes near."""

ROUNDING = 1e-12


def subtractive(seed: int = 0, instances: int = 12) -> StatementResult:
    """Check statement 10: exact where the difference is positive, bounded in any case."""
    tally = Tally()
    growths = []
    for instance in random_instances(10, seed, instances):
        _exact(tally, instance)
        growths.append(_bounded(tally, instance))
    rare = rare_habit()
    contrastive = contrastive_logits(rare.sft_logits, rare.ref_logits, 4.0).log_softmax(-1)
    growth = (contrastive - rare.log_sft).max() + math.log(1 - 0.8)
    tally.differs("contrastive decoding, α = 4, of a rare token: log growth above that of any c ≤ 0.8", growth)
    return StatementResult(
        number=10,
        key="subtractive",
        title="p ∝ max(π_SFT - c e^-R π_ref, ε π_SFT) per token is (π_SFT - c π_ref)/(1-c); p/π_SFT ≤ 1/max(1-c, ε)",
        source="D",
        assumes="for the equality π_SFT > c π_ref for every sequence; the bound: none",
        method="all sequences of the decoder against the difference; growth of each",
        checks=tally.checks(),
        details={
            "shares": list(SHARES),
            "alphas": list(ALPHAS),
            "largest_log_growth": growths,
        },
    )


def state_log_ratios(tree: TokenTree, dense: Tensor) -> Tensor:
    """R of the completion so far in every state: (states,)."""
    before = mixture.log_ratios_before(dense, tree.mask)
    table = dense.new_zeros(tree.mdp.num_states)
    table[tree.states[tree.mask]] = before[tree.mask]
    return table


def _exact(tally: Tally, instance: Instance) -> None:
    tree, log_sft, log_ref = instance.tree, instance.log_sft, instance.log_ref
    dense, ratios = sequence_log_ratios(tree, log_sft, log_ref)
    before = state_log_ratios(tree, dense)
    sft, ref = (mdp.sequence_logprobs(tree, table).exp() for table in (log_sft, log_ref))
    share = 0.9 * float((sft / ref).min())
    found = mixture.subtractive_logprobs(log_sft, log_ref, before, share, TINY)
    difference = (sft - share * ref) / (1 - share)
    tally.equal("decoded sequences = (π_SFT - c π_ref) / (1-c)", mdp.sequence_logprobs(tree, found).exp(), difference)
    tally.equal(
        "p(y)/π_SFT(y) = w(y) / (1-c)", difference / sft, mixture.bounded_posterior(ratios, share) / (1 - share)
    )
    nothing = mixture.subtractive_logprobs(log_sft, log_ref, before, 0.0, TINY)
    tally.equal("c = 0: π_SFT", nothing, log_sft)
    # a mixture of the reference and another policy, in a share that matters
    share, other = 0.7, instance.log_policy
    mixed = mdp.token_policy(tree, (share * ref + (1 - share) * mdp.sequence_logprobs(tree, other).exp()).log())
    before = state_log_ratios(tree, sequence_log_ratios(tree, mixed, log_ref)[0])
    found = mixture.subtractive_logprobs(mixed, log_ref, before, share, TINY)
    decoded, new = (mdp.sequence_logprobs(tree, policy).exp() for policy in (found, other))
    tally.equal("π_SFT = c π_ref + (1-c) π_E: decodes π_E", decoded, new)
    forgetful = mixture.subtractive_logprobs(mixed, log_ref, torch.zeros_like(before), share, TINY)
    tally.differs("without the factor e^-R of what came before: TV", mdp.sequence_tv(tree, forgetful, other))


def _bounded(tally: Tally, instance: Instance) -> dict[str, list[float]]:
    """Any c: how much each sequence grows; contrastive decoding beside it."""
    tree, log_sft, log_ref = instance.tree, instance.log_sft, instance.log_ref
    dense, ratios = sequence_log_ratios(tree, log_sft, log_ref)
    before = state_log_ratios(tree, dense)
    log_p = mdp.sequence_logprobs(tree, log_sft)
    growths = []
    for share in SHARES:
        weights, largest = mixture.bounded_posterior(ratios, share), 0.0
        for floor in FLOORS:
            found = mixture.subtractive_logprobs(log_sft, log_ref, before, share, floor)
            growth = mdp.sequence_logprobs(tree, found) - log_p
            most = -math.log(max(1 - share, floor))
            tally.bounded(
                "any c: log p/π_SFT - log max(w, ε)/max(1-c, ε) ≤ 0",
                growth - weights.clamp(min=floor).log() - most,
                ROUNDING,
            )
            tally.bounded("any c: log p/π_SFT + log max(1-c, ε) ≤ 0", growth - most, ROUNDING)
            whole = mdp.token_policy(tree, log_p + weights.clamp(min=floor).log())
            tally.differs("where it is cut: TV to π_SFT max(w, ε)", mdp.sequence_tv(tree, found, whole))
            largest = max(largest, float(growth.max()))
        growths.append(largest)
    others = []
    for alpha in ALPHAS:
        contrastive = contrastive_logits(instance.sft_logits, instance.ref_logits, alpha).log_softmax(-1)
        others.append(float((mdp.sequence_logprobs(tree, contrastive) - log_p).max()))
    return {"subtractive": growths, "contrastive": others}
