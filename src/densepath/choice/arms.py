"""An arm is judged at its best: at the decoding, and with the tuned values, that did best on validation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from densepath.stats.seeds import SeedValues


def best_decoding(validation: Mapping[str, SeedValues]) -> tuple[str, float] | None:
    """The decoding with the highest mean on validation, the first of equal ones, and that mean; None without any.

    Args:
        validation: decoding -> for each seed one value a prompt. A decoding that lacks a seed is to be left out: the
            others may be the lucky ones.
    """
    means = {name: float(np.mean([np.mean(each) for each in values])) for name, values in validation.items()}
    best = max(means, key=lambda name: means[name], default=None)
    return None if best is None else (best, means[best])


def best_variant(variants: Mapping[str, Mapping[str, SeedValues]]) -> str | None:
    """The variant that did best on validation at its own best decoding, the first of equal ones; None without any.

    Args:
        variants: name -> what `best_decoding` takes.
    """
    best = {name: found[1] for name, each in variants.items() if (found := best_decoding(each)) is not None}
    return max(best, key=lambda name: best[name], default=None)
