"""Losses of the baselines that tell demonstrations from a policy's own samples by the density ratio to it."""

from __future__ import annotations

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from densepath.core.objective import Metrics


class Surrogate(str, Enum):
    """Losses of a density ratio `exp(f)`, as l_demo(f) of demonstrations and l_own(f) of own samples.

        logistic       log(1 + e^-f)    log(1 + e^f)
        hinge          max(0, 1 - f)    max(0, 1 + f)
        brier          (1 - s(f))^2     s(f)^2              s the logistic function
        kliep          -f               e^f
        least_squares  -e^f             e^(2f) / 2          LSIF
        exponential    e^-f             e^f

    At f = 0 each pulls demonstrations up and own samples down with equal force.
    """

    LOGISTIC = "logistic"
    HINGE = "hinge"
    BRIER = "brier"
    KLIEP = "kliep"
    LEAST_SQUARES = "least_squares"
    EXPONENTIAL = "exponential"


def spin_loss(demonstration_ratios: Tensor, own_ratios: Tensor, beta: float) -> tuple[Tensor, Metrics]:
    """SPIN: `mean_i log(1 + exp(-beta (u_i - v_i)))`, u_i of a demonstration and v_i of an own sample for its prompt.

    Args:
        demonstration_ratios: (pairs,) float with gradient, `log pi_theta(y|x) - log pi_opponent(y|x)`, nats.
        own_ratios: (pairs,) float with gradient, the same of the opponent's sample for the same prompt.
        beta: the paper's lambda, above 0.

    Returns:
        Scalar loss; metrics: see `_metrics`.

    Source: Chen et al. 2024 (arXiv 2401.01335), the logistic loss. It is DPO's loss with the opponent as reference.
    """
    _check(demonstration_ratios, own_ratios, beta)
    loss = -F.logsigmoid(beta * (demonstration_ratios - own_ratios)).mean()
    return loss, _metrics(demonstration_ratios, own_ratios, beta)


def gsil_loss(
    demonstration_ratios: Tensor, own_ratios: Tensor, beta: float, surrogate: Surrogate = Surrogate.LOGISTIC
) -> tuple[Tensor, Metrics]:
    """GSIL: `mean_i l_demo(beta u_i) + mean_i l_own(beta v_i)`; unlike SPIN's, each completion is judged on its own.

    Args:
        demonstration_ratios: (pairs,) float with gradient, `log pi_theta(y|x) - log pi_opponent(y|x)`, nats.
        own_ratios: (samples,) float with gradient, the same of the opponent's samples.
        beta: factor on the log-ratio, above 0.
        surrogate: the losses.

    Returns:
        Scalar loss; metrics: see `_metrics`.

    Source: Xiao et al. 2024 (arXiv 2410.10093); `f = beta log(pi_theta / pi_opponent)`, and all surrogates but the
    exponential, are those of its authors' code, without the constant that it can add to f. The exponential is *ours*:
    the classifier's loss of that name.
    """
    _check(demonstration_ratios, own_ratios, beta)
    f, g = beta * demonstration_ratios, beta * own_ratios
    if surrogate is Surrogate.LOGISTIC:
        losses = -F.logsigmoid(f), -F.logsigmoid(-g)
    elif surrogate is Surrogate.HINGE:
        losses = torch.relu(1 - f), torch.relu(1 + g)
    elif surrogate is Surrogate.BRIER:
        losses = torch.sigmoid(-f).square(), torch.sigmoid(g).square()
    elif surrogate is Surrogate.KLIEP:
        losses = -f, g.exp()
    elif surrogate is Surrogate.LEAST_SQUARES:
        losses = -f.exp(), (2 * g).exp() / 2
    else:
        losses = (-f).exp(), g.exp()
    return losses[0].mean() + losses[1].mean(), _metrics(demonstration_ratios, own_ratios, beta)


def _check(demonstration_ratios: Tensor, own_ratios: Tensor, beta: float) -> None:
    if demonstration_ratios.dim() != 1 or demonstration_ratios.shape != own_ratios.shape:
        raise ValueError(
            "log-ratios must be (pairs,) of demonstrations and of own samples, "
            f"got {tuple(demonstration_ratios.shape)} and {tuple(own_ratios.shape)}"
        )
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")


def _metrics(demonstration_ratios: Tensor, own_ratios: Tensor, beta: float) -> Metrics:
    """Under TRL's names: mean `beta`-scaled log-ratios, and the share of pairs in which the demonstration's is larger.

    The ratios are sums over a completion, so the margin is that of sequences.
    """
    chosen, rejected = beta * demonstration_ratios.detach(), beta * own_ratios.detach()
    return {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype).mean(),
    }
