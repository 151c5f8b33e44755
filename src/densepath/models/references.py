"""What the references of an SFT run are called, which are folders under `references`."""

from __future__ import annotations

EMA_NAME = "ema"
"""The exponential moving average of the weights."""


def fraction_of(name: str) -> float | None:
    """The fraction that a reference is called by, in [0, 1); None for one of another name.

    >>> fraction_of("0.5"), fraction_of("ema"), fraction_of("checkpoint-40")
    (0.5, None, None)
    """
    try:
        fraction = float(name)
    except ValueError:
        return None
    return fraction if 0 <= fraction < 1 else None


def reference_name(fraction: float) -> str:
    """Name of the checkpoint at a fraction of the samples: 0.5 -> "0.5"."""
    return f"{fraction:g}"
