"""Every statement holds on seeds other than the command's default, with deviations at rounding."""

import pytest
import torch

from densepath.errors import UsageError
from densepath.records import theory as records
from densepath.records.theory import Check, Kind, Report, StatementResult
from densepath.theory import optimum as optimum_module
from densepath.theory.runner import STATEMENTS, chosen_keys, run_statements
from densepath.theory.tally import Tally


@pytest.mark.parametrize("key", list(STATEMENTS))
def test_holds(key, small_settings):
    result = STATEMENTS[key](11, 6)
    failed = [check for check in result.checks if not check.holds]
    assert not failed
    assert result.holds
    assert result.deviation <= 1e-10
    assert (result.key, result.number) == (key, list(STATEMENTS).index(key) + 1)
    assert {check.kind for check in result.checks} >= {Kind.EQUALITY, Kind.DIFFERS}  # where it holds, and where not
    assert result.source[0] in "PD"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_holds_whatever_the_seed(seed):
    report = run_statements(seed=seed + 100, instances=1 + 5 * seed)
    assert report.holds


@pytest.mark.parametrize(("seed", "number"), [(6, 10), (17, 9), (58, 8)])
def test_a_counterexample_is_found_where_the_one_random_instance_holds_none(seed, number):
    key = list(STATEMENTS)[number - 1]
    (open_check,) = (check for check in STATEMENTS[key](seed, 1).checks if not check.holds)
    report = run_statements(seed, 1, [key])
    assert report.holds
    (found,) = (check for check in report.results[0].checks if check.name == open_check.name)
    assert found in STATEMENTS[key](0, 1).checks


def test_an_equality_that_fails_and_a_nan_stay_failures(monkeypatch):
    def said(value: float, kind: Kind):
        check = Check("said", kind, value, 1e-3)
        return lambda seed, instances: StatementResult(1, "length", "", "D", "", "", (check,), {})

    for value, kind in ((float("nan"), Kind.DIFFERS), (1.0, Kind.EQUALITY), (0.0, Kind.DIFFERS)):
        monkeypatch.setitem(STATEMENTS, "length", said(value, kind))
        assert not run_statements(3, 1, ["length"]).holds


def test_a_seed_gives_the_same_report_twice():
    first, second = (run_statements(3, 2, ["1", "contrastive"]).as_dict() for _ in range(2))
    assert first == second
    assert first != run_statements(4, 2, ["1", "contrastive"]).as_dict()


def test_measured_biases_have_the_known_order(small_settings):
    """Clipping and gamma = 0 move the optimum far, a KL loss and gamma = 0.9 less; whitening inside hardly."""
    details = optimum_module.optimum(0, 2).details
    resting = {name: row.get("tv_of_resting_point") for name, row in details["estimators"].items()}
    assert resting["r̂ clipped at ±1"] > 0.2
    assert resting["γ = 0"] > 0.2
    assert 0.01 < resting["γ = 0.9"] < resting["γ = 0"]
    assert 0.01 < resting["KL as a loss per state"] < 0.5
    assert resting["divided by tokens"] < resting["divided by tokens, no baseline"]
    white = {
        name: row["gradient_at_the_optimum"] for name, row in details["estimators"].items() if "whitening" in name
    }
    assert white["whitening, KL in the return"] < 0.1 * white["whitening, KL as a loss"]
    for place in details["variance"][0].values():
        assert place["all actions"] < place["REINFORCE"] / 3
        assert place["PPO clip, first step"] == pytest.approx(place["REINFORCE, position mean"])


def test_whitening_with_the_kl_inside_fades_with_the_batch(monkeypatch):
    monkeypatch.setattr(optimum_module, "WHITENED_BATCHES", (2, 4, 6))
    table = optimum_module._whitening(0)
    inside, outside = (list(table[name].values()) for name in table)
    assert inside[2] < inside[1] < inside[0]
    assert inside[2] < 1e-2 < 0.1 < outside[2]


def test_statements_are_chosen_by_number_or_key():
    assert chosen_keys([]) == list(STATEMENTS)
    assert chosen_keys(["8", "sft-is-iq-learn", "8"]) == ["sft-is-iq-learn", "contrastive"]
    with pytest.raises(UsageError, match="no statement 12, nope"):
        chosen_keys(["1", "12", "nope"])
    with pytest.raises(UsageError, match="--instances"):
        run_statements(instances=0)
    with pytest.raises(UsageError, match="--seed"):
        run_statements(seed=-1)


def test_tally_keeps_the_worst_and_a_nan():
    tally = Tally()
    one = torch.ones(2)
    tally.equal("equal", one, one)
    tally.equal("equal", one, one + 0.5)
    tally.equal("equal", one, one)
    assert tally.value("equal") == 0.5
    tally.equal("equal", one, one * float("nan"))
    tally.equal("equal", one, one)
    tally.differs("differs", 0.5)
    tally.differs("differs", 0.0)
    checks = {check.name: check for check in tally.checks()}
    assert not checks["equal"].holds
    assert checks["differs"].holds
    with pytest.raises(ValueError, match="shapes"):
        tally.equal("equal", torch.ones(2), torch.ones(1))


@pytest.mark.parametrize(
    ("kind", "value", "holds"),
    [
        (Kind.EQUALITY, 0.1, True),
        (Kind.EQUALITY, 0.3, False),
        (Kind.BOUND, 0.2, True),
        (Kind.DIFFERS, 0.3, True),
        (Kind.DIFFERS, 0.1, False),
        (Kind.SAMPLED, 0.3, False),
        (Kind.EQUALITY, float("nan"), False),
        (Kind.DIFFERS, float("nan"), False),
    ],
)
def test_verdict_of_a_check(kind, value, holds):
    assert Check("x", kind, value, 0.2).holds is holds


def test_a_result_without_checks_does_not_hold():
    empty = StatementResult(1, "k", "t", "D", "a", "m", ())
    assert not empty.holds
    assert not Report(0, 1, ()).holds
    assert records.EQUALITY_TOLERANCE == 1e-10
