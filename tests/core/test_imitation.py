"""SPIN and GSIL against values worked out by hand, where they pull, and where they come to rest."""

from __future__ import annotations

import math

import pytest
import torch

from densepath.core.imitation import Surrogate, gsil_loss, spin_loss

# beta 0.5: f = (1, 0) of demonstrations, g = (-1, 2) of own samples
U, V = torch.tensor([2.0, 0.0], dtype=torch.float64), torch.tensor([-2.0, 4.0], dtype=torch.float64)
LOSSES = {"spin": spin_loss, **{s.value: lambda u, v, beta, s=s: gsil_loss(u, v, beta, s) for s in Surrogate}}
BY_HAND = {
    "spin": 1.126928,  # log(1 + e^-2) = .126928 and log(1 + e^2) = 2.126928
    "logistic": 1.723299,  # (.313262 + .693147) / 2 + (.313262 + 2.126928) / 2
    "hinge": 2.0,  # (0 + 1) / 2 + (0 + 3) / 2
    "brier": 0.585231,  # (.072329 + .25) / 2 + (.072329 + .775803) / 2
    "kliep": 3.378468,  # -(1 + 0) / 2 + (.367879 + 7.389056) / 2
    "least_squares": 11.824230,  # -(2.718282 + 1) / 2 + (.067668 + 27.299075) / 2
    "exponential": 4.562408,  # (.367879 + 1) / 2 + (.367879 + 7.389056) / 2
}


@pytest.mark.parametrize("name", LOSSES)
def test_values_by_hand(name):
    loss, metrics = LOSSES[name](U, V, 0.5)
    assert loss.item() == pytest.approx(BY_HAND[name], abs=1e-6)
    found = {key: value.item() for key, value in metrics.items()}
    assert found == {
        "rewards/chosen": 0.5,
        "rewards/rejected": 0.5,
        "rewards/margins": 0.0,
        "rewards/accuracies": 0.5,
    }


@pytest.mark.parametrize("name", LOSSES)
def test_demonstrations_are_pulled_up_and_own_samples_down(name):
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(50, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2))
    LOSSES[name](u, v, 0.3)[0].backward()  # |f| < 1, so that not even the hinge is flat
    assert (u.grad < 0).all()
    assert (v.grad > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_at_the_opponent_the_two_forces_are_equal(name):
    """pi_theta = pi_opponent: a demonstration that equals the sample is not moved."""
    u, v = (torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    LOSSES[name](u, v, 0.7)[0].backward()
    assert (u.grad + v.grad).abs().max() < 1e-15
    assert u.grad.abs().min() > 0.01


@pytest.mark.parametrize("name", [s.value for s in Surrogate if s is not Surrogate.HINGE])
def test_gsil_rests_where_the_ratio_is_that_of_the_densities(name):
    """Demonstrations are A in 3 of 4, own samples in 1 of 4: the density ratio of A is 3, that of B 1/3."""
    share = 0.5 if name == "exponential" else 1.0  # the exponential loss rests at half the log-ratio
    a = torch.tensor(share * math.log(3), dtype=torch.float64, requires_grad=True)
    b = torch.tensor(-share * math.log(3), dtype=torch.float64, requires_grad=True)
    LOSSES[name](torch.stack([a, a, a, b]), torch.stack([a, b, b, b]), 1.0)[0].backward()
    assert abs(a.grad) < 1e-12
    assert abs(b.grad) < 1e-12
    elsewhere = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    LOSSES[name](torch.stack([elsewhere] * 3 + [b.detach()]), torch.stack([elsewhere] + [b.detach()] * 3), 1.0)[
        0
    ].backward()
    assert abs(elsewhere.grad) > 1e-3


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_spin_rests_where_the_density_ratio_is_raised_to_one_over_beta(beta):
    """Over all pairs of the same demonstrations and samples: beta (u_A - u_B) = log 3 - log 1/3."""
    a = torch.tensor(math.log(9) / beta, dtype=torch.float64, requires_grad=True)
    b = torch.zeros((), dtype=torch.float64)
    demonstrations, own = [a, a, a, b], [a, b, b, b]
    pairs = [(u, v) for u in demonstrations for v in own]
    spin_loss(*(torch.stack(side) for side in zip(*pairs, strict=True)), beta)[0].backward()
    assert abs(a.grad) < 1e-12
    a = (a.detach() - 1 / beta).requires_grad_()
    pairs = [(u, v) for u in [a, a, a, b] for v in [a, b, b, b]]
    spin_loss(*(torch.stack(side) for side in zip(*pairs, strict=True)), beta)[0].backward()
    assert a.grad < -1e-3


def test_the_hinge_rests_at_the_likelier_side():
    a = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    for value, sign in ((0.9, -1), (1.1, 1)):  # 3 (1 - f) + (1 + f) below 1, (1 + f) above
        a = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        gsil_loss(torch.stack([a, a, a]), torch.stack([a, a * 0 - 5, a * 0 - 5]), 1.0, Surrogate.HINGE)[0].backward()
        assert sign * a.grad > 0


def test_a_large_ratio_overflows_nowhere_in_spin():
    u = torch.tensor([-1e4], requires_grad=True)
    loss = spin_loss(u, torch.zeros(1), 1.0)[0]
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert u.grad.item() == pytest.approx(-1.0)


@pytest.mark.parametrize("loss", [spin_loss, gsil_loss])
def test_shapes_and_beta_are_checked(loss):
    with pytest.raises(ValueError, match=r"got \(2,\) and \(3,\)"):
        loss(torch.zeros(2), torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match=r"got \(2, 2\)"):
        loss(torch.zeros(2, 2), torch.zeros(2, 2), 0.1)
    with pytest.raises(ValueError, match="beta must be above 0"):
        loss(torch.zeros(2), torch.zeros(2), 0.0)
