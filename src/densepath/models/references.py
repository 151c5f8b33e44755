"""What the references of an SFT run are called, which are folders under `references`."""

from __future__ import annotations

EMA_NAME = "ema"
"""The exponential moving average of the weights."""


def reference_name(fraction: float) -> str:
    """Name of the checkpoint at a fraction of the samples: 0.5 -> "0.5"."""
    return f"{fraction:g}"
