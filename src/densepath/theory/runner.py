"""All statements by number and key, and a run over some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from densepath.errors import UsageError
from densepath.records.theory import Check, Kind, Report, StatementResult
from densepath.theory.capped import capped
from densepath.theory.contraction import contraction
from densepath.theory.contrastive import contrastive
from densepath.theory.inverse_bellman import inverse_bellman
from densepath.theory.length import length
from densepath.theory.optimum import optimum
from densepath.theory.posterior import posterior
from densepath.theory.reward_error import reward_error
from densepath.theory.sft_is_iq_learn import sft_is_iq_learn
from densepath.theory.shaping import shaping
from densepath.theory.subtractive import subtractive

Statement = Callable[[int, int], StatementResult]
"""(seed, instances) -> result."""

STATEMENTS: dict[str, Statement] = {
    "sft-is-iq-learn": sft_is_iq_learn,
    "inverse-bellman": inverse_bellman,
    "shaping": shaping,
    "length": length,
    "optimum": optimum,
    "reward-error": reward_error,
    "contraction": contraction,
    "contrastive": contrastive,
    "posterior": posterior,
    "subtractive": subtractive,
    "capped": capped,
}
"""In the order of their numbers, from 1."""

SURE_SEED = 0
"""Its first instance shows every difference that is said to be."""

DEFAULT_INSTANCES = 12
"""Random instances of each statement: twice through the six sizes of `instances.SIZES`."""


def chosen_keys(only: Sequence[str]) -> list[str]:
    """Keys of the statements named by number or key, in their own order; all of them for none.

    Raises:
        UsageError: a name that is neither.
    """
    keys = list(STATEMENTS)
    by_name = {str(number): key for number, key in enumerate(keys, start=1)} | {key: key for key in keys}
    unknown = [name for name in only if name not in by_name]
    if unknown:
        raise UsageError(f"no statement {', '.join(unknown)}; there are 1 to {len(keys)}: {', '.join(keys)}")
    wanted = {by_name[name] for name in only} or set(keys)
    return [key for key in keys if key in wanted]


def run_statements(
    seed: int = 0,
    instances: int = DEFAULT_INSTANCES,
    only: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Check the statements on random instances.

    Args:
        seed: everything random follows from it; the same seed gives the same report on one machine.
        instances: random instances of each statement, at least 1.
        only: numbers or keys; all statements if empty.
        progress: told the key of each statement before it is checked.

    Raises:
        UsageError: an unknown statement, or fewer than one instance.
    """
    if instances < 1:
        raise UsageError(f"--instances must be at least 1, got {instances}")
    if seed < 0:
        raise UsageError(f"--seed must be at least 0, got {seed}")
    return Report(seed, instances, tuple(_results(chosen_keys(only), seed, instances, progress)))


def _results(
    keys: Iterable[str], seed: int, instances: int, progress: Callable[[str], None] | None
) -> Iterable[StatementResult]:
    for key in keys:
        if progress is not None:
            progress(key)
        yield _with_counterexamples(STATEMENTS[key](seed, instances))


def _with_counterexamples(result: StatementResult) -> StatementResult:
    """The result, with what is said to differ taken from the instance of `SURE_SEED` where it did not differ enough.

    A few random instances may hold no counterexample, and one refutes an equality, whatever its seed.
    """

    def is_open(check: Check) -> bool:
        return check.kind is Kind.DIFFERS and check.value < check.limit  # a NaN stays

    if not any(map(is_open, result.checks)):
        return result
    sure = {check.name: check for check in STATEMENTS[result.key](SURE_SEED, 1).checks}
    checks = (sure.get(check.name, check) if is_open(check) else check for check in result.checks)
    return replace(result, checks=tuple(checks))
