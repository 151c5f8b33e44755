"""A run's `results.json` in few words."""

from __future__ import annotations

from typing import Any

DECODINGS = ("greedy",)


def row(arm: str, label: str = "", decoding: str = "greedy", **figures: Any) -> dict[str, Any]:
    """An arm's line; figures by their names in the record, all else unknown."""
    unknown = dict.fromkeys(("value", "reward", "length", "entropy", "kl", "nll", "truncated"))
    return {"method": arm, "label": label, "decoding": decoding, "budget": {}, **unknown, **figures}


def comparison(arm: str, against: str, verdict: str, difference: Any, decoding: str = "greedy") -> dict[str, Any]:
    """A paired difference at one decoding."""
    return {
        "method": arm,
        "against": against,
        "decoding": decoding,
        "against_decoding": decoding,
        "difference": difference,
        "verdict": verdict,
        "primary": False,
    }


def record(rows: list[Any], comparisons: list[Any] = (), metric: str = "score", **setting: Any) -> dict[str, Any]:
    """The record of a grid of one setting."""
    one = {"name": "tasks", "prompts": {"test": 240}, "rows": rows, "comparisons": list(comparisons), **setting}
    return {"metric": metric, "interval": "95 % bootstrap over prompts", "settings": [one]}
