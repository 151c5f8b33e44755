"""Cohen's kappa by hand and by scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from densepath.stats.agreement import cohens_kappa

NAMES = ("judge", "label")


def test_by_hand():
    """45 and 15 agreed yes, 25 and 15 not: p_o = 0.6, p_e = 0.54 (Wikipedia's example)."""
    first = ["y"] * 45 + ["y"] * 15 + ["n"] * 25 + ["n"] * 15
    second = ["y"] * 45 + ["n"] * 15 + ["y"] * 25 + ["n"] * 15
    found = cohens_kappa(NAMES, first, second)
    assert found.agreement.mean == 0.6
    assert found.kappa.mean == pytest.approx((0.6 - 0.54) / (1 - 0.54))
    assert found.kappa.low < found.kappa.mean < found.kappa.high


def test_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, (2, 200)).tolist()
    assert cohens_kappa(NAMES, first, second).kappa.mean == pytest.approx(cohen_kappa_score(first, second))


def test_edges():
    assert cohens_kappa(NAMES, [1, 1], [1, 1]).kappa.mean == 0.0
    assert cohens_kappa(NAMES, [1, 0], [1, 0]).kappa.mean == 1.0
    assert cohens_kappa(NAMES, [1, 0], [0, 1]).kappa.mean == -1.0
    with pytest.raises(ValueError, match="got 1 and 2"):
        cohens_kappa(NAMES, [1], [1, 2])


def test_items_of_one_prompt_are_one_unit():
    """Ten copies of each item say no more than one."""
    first, second = [0, 1, 0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0, 1, 1]
    once = cohens_kappa(NAMES, first, second)
    units = [index for index in range(8) for _ in range(10)]
    copied = cohens_kappa(NAMES, [first[i] for i in units], [second[i] for i in units], units)
    assert copied.kappa == once.kappa
    assert (copied.agreement.mean, copied.agreement.n) == (once.agreement.mean, 8)
    assert copied.agreement.high - copied.agreement.low > 0.5
