"""Where one tracked run ends and the next begins."""

from __future__ import annotations

import sys


def end_tracked_run() -> None:
    """End the run of a training with those trackers that transformers leaves open.

    The next training of this process would go on in it, and lose its first steps, which the tracker has seen already.
    """
    for name in ("wandb", "swanlab"):
        tracker = sys.modules.get(name)  # imported by transformers where it is reported to
        if tracker is not None:
            tracker.finish()
