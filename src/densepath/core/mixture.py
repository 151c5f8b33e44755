"""The reward read as evidence: demonstrations are a mixture of behaviours, and R tells which one wrote an answer.

`R(y) = sum_t r_t = log pi_SFT(y) - log pi_ref(y)` is a log-ratio of probabilities, of whole answers and of their
beginnings alike. What follows from that is bounded where `exp(R / beta)` is not: a posterior, a way of decoding and a
capped reward. Nothing here is the paper's. Proofs: docs/theory.md, statements 9 to 11.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from densepath.core.logprobs import lift
from densepath.core.masks import check_mask, keep, masked_sum


def log_ratios_so_far(rewards: Tensor, mask: Tensor) -> Tensor:
    """Log-ratio of each beginning, its last token included: `R_t = sum_{k <= t} r_k`.

    Args:
        rewards: (batch, tokens) float, nats, for instance from `rewards.baseline_relative`.
        mask: (batch, tokens) bool, True = counts, EOS included. Tokens that do not count add nothing.

    Returns:
        (batch, tokens) float, nats, zero where the mask is False.
    """
    return keep(_running(rewards, mask), mask)


def log_ratios_before(rewards: Tensor, mask: Tensor) -> Tensor:
    """Log-ratio of what stands before each token: `R_{<t} = sum_{k < t} r_k`, 0 at the first one.

    Args:
        rewards: (batch, tokens) float, nats.
        mask: (batch, tokens) bool.

    Returns:
        (batch, tokens) float, nats, zero where the mask is False.
    """
    return keep(torch.nn.functional.pad(_running(rewards, mask), (1, 0))[:, :-1], mask)


def sequence_scores(rewards: Tensor, mask: Tensor) -> Tensor:
    """What demonstrations are sorted by: `s = sum_t r_t / sqrt(T)`, T the tokens that count.

    The noise of a sum of T rewards grows as sqrt(T), so that the scores of short and long answers compare.

    Args:
        rewards: (batch, tokens) float, nats.
        mask: (batch, tokens) bool.

    Returns:
        (batch,) float, nats per square root of a token; 0 for an empty completion.

    Source: derived. A choice that measurements support, not a theorem.
    """
    total = masked_sum(lift(rewards), mask, dim=1)
    return total / mask.sum(dim=1).clamp(min=1).to(total.dtype).sqrt()


def responsibilities(log_likelihoods: Tensor, log_shares: Tensor) -> Tensor:
    """Which behaviour wrote each answer: `gamma_ik = softmax_k(log rho_k + log pi_k(y_i))`, EM's E step.

    With the true behaviours and shares it is the exact posterior. Where no answer is possible under two behaviours it
    is 0 or 1, whatever the shares.

    Args:
        log_likelihoods: (answers, behaviours) float, `sum_t log pi_k(y_it)`, nats; -inf for an impossible answer.
        log_shares: (behaviours,) float, log rho_k, nats; -inf for a share of 0. An offset common to all is allowed.

    Returns:
        (answers, behaviours) float in [0, 1]; rows sum to 1.

    Raises:
        ValueError: shapes that do not fit, a value that is NaN or +inf, or an answer that no behaviour with a share
            can have written.

    Source: derived in docs/theory.md, statement 9; it is the E step of any mixture.
    """
    if log_likelihoods.dim() != 2 or log_shares.shape != log_likelihoods.shape[1:]:
        raise ValueError(
            "need log-likelihoods (answers, behaviours) and log-shares (behaviours,), "
            f"got {tuple(log_likelihoods.shape)} and {tuple(log_shares.shape)}"
        )
    joint = lift(log_likelihoods) + lift(log_shares)
    broken = ~(joint < math.inf).all(dim=1)
    if bool(broken.any()):
        raise ValueError(f"log-likelihoods or log-shares of answer {_first(broken)} are NaN or +inf")
    impossible = (joint == -math.inf).all(dim=1)
    if bool(impossible.any()):
        raise ValueError(f"answer {_first(impossible)} has probability 0 under every behaviour that has a share")
    return joint.softmax(dim=1)


def mean_shares(responsibilities: Tensor) -> Tensor:
    """Shares of the behaviours in a set of answers: `rho_k = mean_i gamma_ik`, the M step of EM for the shares.

    The likelihood of the answers never falls by it, and the true shares stay as they are.

    Args:
        responsibilities: (answers, behaviours) float, at least one answer.

    Returns:
        (behaviours,) float; it sums to 1.

    Source: derived in docs/theory.md, statement 9; it is EM's.
    """
    if responsibilities.dim() != 2 or responsibilities.shape[0] == 0:
        raise ValueError(f"responsibilities must be (answers > 0, behaviours), got {tuple(responsibilities.shape)}")
    return responsibilities.mean(dim=0)


def lifts(shares: Tensor, reference_shares: Tensor) -> Tensor:
    """How much SFT raised each behaviour: `lift_k = log rho_k - log rho0_k`.

    Where no answer is possible under two behaviours, it is R(y) of every answer y of behaviour k. Where behaviours
    overlap, an E step with SFT's rho on the reference's samples is one step of EM from rho towards rho0: with two
    behaviours the lift then comes out too near to 0. Repeat it with the reference's own shares until they stay.

    Args:
        shares: (behaviours,) float, rho: shares in the demonstrations.
        reference_shares: (behaviours,) float, rho0: shares in the reference's own samples.

    Returns:
        (behaviours,) float, nats: +inf for a behaviour that the reference never shows, -inf for one that the
        demonstrations never do, NaN for one that neither does.

    Source: derived in docs/theory.md, statement 9.
    """
    if shares.dim() != 1 or shares.shape != reference_shares.shape:
        raise ValueError(
            f"shares must be (behaviours,), got {tuple(shares.shape)} and {tuple(reference_shares.shape)}"
        )
    return shares.log() - reference_shares.log()


def log_share_errors(log_likelihoods: Tensor, shares: Tensor) -> Tensor:
    """Standard errors of the logs of `settled_shares`, by the Fisher information of the answers.

        var(log rho_k) = [G^-1]_kk - 1/n,  G_jk = sum_i gamma_ij gamma_ik

    Where no answer is possible under two behaviours that is the binomial's (1 - rho_k) / (n rho_k). The more they
    overlap the larger it is, and it has no bound where they are one, or where no answer shows the behaviour.

    Args:
        log_likelihoods: (answers, behaviours) float, nats.
        shares: (behaviours,) float, rho, which maximise the likelihood of these answers.

    Returns:
        (behaviours,) float64.

    Source: derived; the inverse of the observed information on the simplex, by the delta method.
    """
    gamma = responsibilities(log_likelihoods.double(), shares.double().log())
    tiny = 1e-9 * len(gamma) * torch.eye(len(shares), dtype=torch.float64)
    inverse: Tensor = torch.linalg.inv(gamma.T @ gamma + tiny)
    return (inverse.diagonal() - 1 / len(gamma)).clamp(min=0).sqrt()


def bounded_posterior(log_ratios: Tensor, reference_share: float) -> Tensor:
    """Posterior that an answer, or its beginning, is not the reference's doing: `w = max(0, 1 - c exp(-R))`.

    If `pi_SFT = c pi_ref + (1 - c) pi_E` it is Bayes' posterior of pi_E, exactly, for whole sequences and for
    prefixes. For a c above `exp(min R)` there is no such pi_E, and 0 is where it is cut; then the value of a prefix is
    at most the mean of its sequences'. Never above 1, whatever R.

    Args:
        log_ratios: any shape, float, R in nats, of whole sequences or of prefixes; +inf is new (1), -inf is old (0).
        reference_share: c in [0, 1]. With 0 nothing is the reference's, and w = 1.

    Returns:
        The shape of `log_ratios`, float32 or float64 in [0, 1].

    Source: derived in docs/theory.md, statement 9.
    """
    return torch.expm1(_log_reference_odds(lift(log_ratios), reference_share)).clamp(max=0).neg()


def excess_weights(log_ratios: Tensor, threshold: float) -> Tensor:
    """Share of an answer's probability that exceeds its threshold: `max(0, 1 - exp(threshold - R))`.

    `pi_SFT` times it is `max(0, pi_SFT - c pi_ref)`, `c = exp(threshold)`. Up to a threshold of 0 it is
    `bounded_posterior`. Above, as with the median R of the demonstrations, it is no posterior but a weight as bounded.

    Args:
        log_ratios: any shape, float, R, nats.
        threshold: log c, a finite number of nats.

    Returns:
        The shape of `log_ratios`, float32 or float64 in [0, 1].

    Source: derived in docs/theory.md, statement 9.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number of nats, got {threshold}")
    return torch.expm1(threshold - lift(log_ratios)).clamp(max=0).neg()


def prefix_posteriors(rewards: Tensor, mask: Tensor, reference_share: float) -> Tensor:
    """`bounded_posterior` of every beginning of every completion: `w_t = max(0, 1 - c exp(-sum_{k <= t} r_k))`.

    The last one that counts is the completion's own.

    Args:
        rewards: (batch, tokens) float, nats.
        mask: (batch, tokens) bool.
        reference_share: c in [0, 1].

    Returns:
        (batch, tokens) float in [0, 1], zero where the mask is False.

    Source: derived in docs/theory.md, statement 9.
    """
    return keep(bounded_posterior(log_ratios_so_far(rewards, mask), reference_share), mask)


def subtractive_logprobs(
    sft_logits: Tensor, ref_logits: Tensor, log_ratios: Tensor, reference_share: float, floor: float
) -> Tensor:
    """Subtractive decoding: `p(a|s) ~ max(pi_SFT(a|s) - c exp(-R_{<t}) pi_ref(a|s), floor pi_SFT(a|s))`.

    That is `pi_SFT(a|s) max(w, floor)`, w the posterior of the prefix that a completes. While no w falls below the
    floor, the sequences are distributed as `(pi_SFT - c pi_ref) / (1 - c)` exactly. In any case
    `p(y) / pi_SFT(y) <= max(w(y), floor) / max(1 - c, floor)`: no event's probability grows by more than
    `1 / max(1 - c, floor)`.

    Args:
        sft_logits: (..., vocabulary) float; log-probabilities are logits too. -inf for what is forbidden.
        ref_logits: the same of the reference.
        log_ratios: (...) float, R_{<t} = log pi_SFT - log pi_ref of the completion so far, 0 at its start, nats.
        reference_share: c in [0, 1].
        floor: least w, in (0, 1]; 1 gives pi_SFT.

    Returns:
        (..., vocabulary) float32 or float64, log-probabilities, nats.

    Source: derived in docs/theory.md, statement 10.
    """
    if sft_logits.shape != ref_logits.shape or log_ratios.shape != sft_logits.shape[:-1]:
        raise ValueError(
            f"shapes do not fit: {tuple(sft_logits.shape)}, {tuple(ref_logits.shape)}, {tuple(log_ratios.shape)}"
        )
    if not 0.0 < floor <= 1.0:
        raise ValueError(f"floor must lie in (0, 1], got {floor}")
    sft, ref = (torch.log_softmax(lift(logits), dim=-1) for logits in (sft_logits, ref_logits))
    forbidden, unknown = sft == -math.inf, ref == -math.inf
    # what SFT does not do stays out, and what the reference does not do takes nothing away: no inf - inf
    through = lift(log_ratios).unsqueeze(-1) + torch.where(forbidden, 0.0, sft)
    log_odds = torch.where(unknown, -math.inf, _log_reference_odds(through, reference_share) + ref)
    log_posterior = torch.expm1(log_odds).clamp(max=0).neg().log().clamp(min=math.log(floor))
    return torch.log_softmax(torch.where(forbidden, -math.inf, sft + log_posterior), dim=-1)


class Cap(NamedTuple):
    """The cap of a sequence's reward: `scale min(0, R - cap)`.

    Attributes:
        cap: kappa, nats of the unscaled R: what lies above it is all the same.
        scale: alpha, above 0.
    """

    cap: float
    scale: float = 1.0


def capped_returns(log_ratios: Tensor, cap: float, scale: float = 1.0) -> Tensor:
    """The capped reward of a whole completion: `scale min(0, R - cap)`.

    Args:
        log_ratios: any shape, float, R, nats.
        cap: kappa, nats: what lies above it is all the same.
        scale: alpha, above 0.

    Returns:
        The shape of `log_ratios`, float, nats, at most 0.

    Source: derived in docs/theory.md, statement 11.
    """
    if not math.isfinite(cap):
        raise ValueError(f"cap must be a finite number of nats, got {cap}")
    if not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 and finite, got {scale}")
    return scale * (log_ratios - cap).clamp(max=0)


def capped_increments(rewards: Tensor, log_ratios: Tensor, first: Tensor, cap: float, scale: float = 1.0) -> Tensor:
    """What a token adds to the capped sum: `C(R_{<t} + r) - C(R_{<t})`, `C(R) = scale min(0, R - cap)`.

    Before the first token C counts as 0, so that a completion's increments sum to `C(R(y))`. All is elementwise, and
    `rewards` may be those of every action: with a last dimension of the vocabulary, the others with one of 1.

    Args:
        rewards: (...) float, r, nats.
        log_ratios: (...) float, R_{<t}, nats; broadcast against `rewards`.
        first: (...) bool, True where no token came before; broadcast against `rewards`.
        cap: kappa, nats.
        scale: alpha, above 0.

    Returns:
        (...) float, nats; 0 where the sum had already reached -inf.

    Source: derived in docs/theory.md, statement 11.
    """
    zero = torch.zeros((), dtype=rewards.dtype, device=rewards.device)
    before = torch.where(first, zero, capped_returns(log_ratios, cap, scale))
    return torch.where(before == -math.inf, zero, capped_returns(log_ratios + rewards, cap, scale) - before)


def capped_rewards(rewards: Tensor, mask: Tensor, cap: float, scale: float = 1.0) -> Tensor:
    """The capped reward of a completion, token by token: increments of its capped running sum.

        d_t = C(R_t) - C(R_{t-1}),   C(R) = scale min(0, R - cap),   C before the first token 0

    They sum to `scale min(0, R(y) - cap)`, whose optimum is `pi* ~ pi_SFT min(1, exp(scale (R - cap) / beta))`: no
    event's probability grows by more than one over the mean of `capped_weights`. The cap is on the sum. A cap on each
    token's reward has another optimum, and can lower an answer whose R is above it.

    Args:
        rewards: (batch, tokens) float, r, nats.
        mask: (batch, tokens) bool, True = counts, EOS included.
        cap: kappa, nats.
        scale: alpha, above 0.

    Returns:
        (batch, tokens) float, nats, zero where the mask is False. An empty completion has no token to bear its
        `scale min(0, -cap)`.

    Source: derived in docs/theory.md, statement 11.
    """
    before, first = log_ratios_before(rewards, mask), mask & (mask.cumsum(dim=1) == 1)
    return keep(capped_increments(keep(lift(rewards), mask), before, first, cap, scale), mask)


def running_before(rewards: Tensor, first: Tensor, carried: Tensor) -> tuple[Tensor, Tensor]:
    """`R_{<t}` along rows that lie one after the other, a chunk of them at a time.

    Args:
        rewards: (tokens,) float, r, nats.
        first: (tokens,) bool, True where a row begins.
        carried: scalar float64, the sum before the chunk's first token; 0 before the first chunk.

    Returns:
        (tokens,) float64, nats, 0 where a row begins; scalar float64, what to carry into the next chunk.

    >>> running_before(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([False, True, False]), torch.tensor(8.0).double())
    (tensor([8., 0., 2.], dtype=torch.float64), tensor(6., dtype=torch.float64))
    """
    through = rewards.double().cumsum(dim=0) + carried
    before = through - rewards.double()
    places = torch.arange(len(rewards), device=rewards.device)
    begun = torch.where(first, places, -1).cummax(dim=0).values  # the row's first token, -1 in an earlier chunk
    zero = torch.zeros_like(before)
    before = before - torch.where(begun >= 0, before[begun.clamp(min=0)], zero)
    return before, before[-1] + rewards[-1].double()


def capped_weights(log_ratios: Tensor, cap: float, scale: float, beta: float) -> Tensor:
    """What the capped optimum makes of pi_SFT: `w = min(1, exp(scale (R - cap) / beta))`, `pi* = pi_SFT w / Z`.

    Z is the mean of w over SFT's samples of a prompt, and no event is more than 1/Z times as likely as under SFT. With
    beta = 0 it is the filter `R >= cap`.

    Args:
        log_ratios: any shape, float, R of whole completions, nats.
        cap: kappa, nats.
        scale: alpha, above 0.
        beta: coefficient of the KL to SFT, at least 0.

    Returns:
        The shape of `log_ratios`, float in [0, 1].

    Source: derived in docs/theory.md, statement 11.
    """
    if not 0.0 <= beta < math.inf:
        raise ValueError(f"beta must be at least 0 and finite, got {beta}")
    capped = capped_returns(log_ratios, cap, scale)
    return (capped == 0).to(capped.dtype) if beta == 0 else (capped / beta).exp()


def _running(rewards: Tensor, mask: Tensor) -> Tensor:
    """Sum of the rewards that count up to each column, at every column."""
    check_mask(mask, rewards)
    if rewards.dim() != 2:
        raise ValueError(f"rewards must be (batch, tokens), got {tuple(rewards.shape)}")
    return keep(lift(rewards), mask).cumsum(dim=1)


def _log_reference_odds(log_ratios: Tensor, reference_share: float) -> Tensor:
    """`log (c exp(-R))`: the reference's part over the whole; -inf everywhere for c = 0."""
    if not 0.0 <= reference_share <= 1.0:
        raise ValueError(f"reference_share must lie in [0, 1], got {reference_share}")
    if reference_share == 0.0:
        return torch.where(log_ratios.isnan(), log_ratios, -math.inf)
    return math.log(reference_share) - log_ratios


def _first(rows: Tensor) -> int:
    return int(rows.nonzero()[0, 0])


def rank_bands(scores: Tensor, kinds: Tensor, num_bands: int, share: float) -> Tensor:
    """Which band each answer's score lies in: bands of equal size around the rank quantiles `k / (K - 1)`.

    The first and the last band lie flush at both ends. Ranks are taken within each kind, so that each kind has its
    share of every band: over all of them a kind whose scores are low would be unlearned.

    Args:
        scores: (answers,) float.
        kinds: (answers,) integer, which kind of prompt each belongs to.
        num_bands: K, at least 2.
        share: of the answers of a kind in one band, in (0, 1/K]; each band has at least one.

    Returns:
        (answers,) int64, 0 for the lowest band up to K - 1, -1 outside of all.

    Raises:
        ValueError: shapes or numbers that do not fit, bands that overlap, or a kind with fewer answers than bands.

    Source: derived in docs/purify.md.
    """
    if scores.dim() != 1 or scores.shape != kinds.shape or not bool(torch.isfinite(scores).all()):
        raise ValueError(f"scores must be finite and (answers,) like kinds, got {scores.shape} and {kinds.shape}")
    if num_bands < 2 or not 0 < share <= 1 / num_bands:
        raise ValueError(f"{num_bands} bands of a share of {share} each overlap or are none; take 2 or more, and less")
    found = torch.full_like(scores, -1, dtype=torch.int64)
    for kind in torch.unique(kinds):
        members = (kinds == kind).nonzero().squeeze(1)
        order = members[scores[members].argsort(stable=True)]
        size = max(1, math.floor(share * len(order)))
        if size * num_bands > len(order):
            raise ValueError(f"{len(order)} answers of a kind, fewer than {num_bands} bands need")
        for band in range(num_bands):
            start = round(band * (len(order) - size) / (num_bands - 1))
            found[order[start : start + size]] = band
    return found


def systematic_draws(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` answers drawn in proportion to their weights, each as often as expected up to rounding, in random order.

        draw j is the answer whose cumulative weight contains (j + u) / count, u ~ U(0, 1)

    Systematic resampling: an answer of share w is drawn floor(count w) or ceil(count w) times.

    Args:
        weights: (answers,) float, none below 0, not all 0.
        count: number of draws.
        generator: of u and of the order.

    Returns:
        (count,) int64 indices of answers.

    Raises:
        ValueError: weights that are no such.
    """
    total = lift(weights).double()
    if weights.dim() != 1 or not bool((total >= 0).all()) or not 0 < float(total.sum()) < math.inf:
        raise ValueError("weights must be (answers,) finite numbers, none below 0 and not all 0")
    edges = total.cumsum(0) / total.sum()
    start = torch.rand((), generator=generator, dtype=torch.float64)
    points = (torch.arange(count, dtype=torch.float64) + start) / count
    found = torch.searchsorted(edges, points, right=True).clamp(max=int(total.nonzero().max()))
    return found[torch.randperm(count, generator=generator)]


def settled_shares(log_likelihoods: Tensor, *, tolerance: float = 1e-6, most: int = 500) -> Tensor:
    """Shares of the behaviours in a set of answers: E steps and their means, repeated until the shares stay.

    The behaviours are not trained again: the shares alone are EM's unknowns, and the likelihood is concave in them. It
    begins with equal shares: one that is nearly 0 grows by a factor in each step, which looks like a share that stays.

    Args:
        log_likelihoods: (answers, behaviours) float, nats.
        tolerance: the largest change of a share that counts as none.
        most: steps.

    Returns:
        (behaviours,) float64.
    """
    number = log_likelihoods.shape[1]
    shares = torch.full((number,), 1 / number, dtype=torch.float64)
    for _ in range(most):
        fresh = mean_shares(responsibilities(log_likelihoods.double(), shares.log()))
        settled = float((fresh - shares).abs().max()) < tolerance
        shares = fresh
        if settled:
            break
    return shares
