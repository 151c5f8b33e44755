"""How far two raters agree: Cohen's kappa with its interval."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from densepath.records.judged import Kappa
from densepath.stats.bootstrap import bootstrap, credit_interval, ratio_interval, replicate_interval


def cohens_kappa(
    names: tuple[str, str],
    first: Sequence[Hashable],
    second: Sequence[Hashable],
    units: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Kappa:
    """Agreement beyond chance of two raters on the same items.

        kappa = (p_o - p_e) / (1 - p_e),    p_e = sum over labels of share_1(label) share_2(label)

    Where both say one and the same of every item, chance agrees as well and kappa is taken as 0.

    Args:
        names: of the raters.
        first: label of each item by the one.
        second: by the other, in the same order.
        units: what each item is of, such as its prompt; those of one unit are not independent. None: each is its own.
        seed: of the bootstrap over units.

    Raises:
        ValueError: no item, or a label without its other.

    Source: Cohen, A Coefficient of Agreement for Nominal Scales (1960).
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"cohens_kappa needs labels of the same items, got {len(first)} and {len(second)}")
    labels = {label: index for index, label in enumerate(dict.fromkeys([*first, *second]))}
    one = np.array([labels[label] for label in first])
    other = np.array([labels[label] for label in second])
    names_of_units = {unit: index for index, unit in enumerate(dict.fromkeys(units or range(len(one))))}
    unit = np.array([names_of_units[each] for each in units or range(len(one))])
    rows, agreed = len(names_of_units), (one == other).astype(np.float64)
    tables = np.zeros((rows, len(labels) ** 2))
    np.add.at(tables, (unit, one * len(labels) + other), 1)
    replicates = bootstrap(rows, lambda counts: _kappa(counts @ tables, len(labels)), seed=seed)
    value = float(_kappa(tables.sum(axis=0)[None], len(labels))[0])
    if rows == len(one):
        agreement = credit_interval(agreed, seed)
    else:
        agreement = ratio_interval(np.bincount(unit, agreed).astype(np.float64), tables.sum(axis=1), seed)
    return Kappa(*names, agreement, replicate_interval(value, replicates, rows))


def _kappa(tables: NDArray[np.float64], labels: int) -> NDArray[np.float64]:
    """(tables, labels^2) counts to (tables,) kappa."""
    shares = tables.reshape(-1, labels, labels) / tables.sum(axis=1)[:, None, None]
    observed = np.trace(shares, axis1=1, axis2=2)
    chance = (shares.sum(axis=2) * shares.sum(axis=1)).sum(axis=1)
    return np.where(chance < 1, (observed - chance) / np.where(chance < 1, 1 - chance, 1), 0.0)
