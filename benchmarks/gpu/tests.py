"""Part (b): the default tests whose result a GPU may change, file by file, until the time box ends."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks.gpu.boxes import Report, compared

if TYPE_CHECKING:
    from benchmarks.gpu.check import Settings

FILES = (
    *("models/test_scoring.py", "models/test_sampling.py", "models/test_adapters.py", "core/test_heads.py"),
    *("trainers/test_dpr.py", "trainers/test_sft.py", "pipeline/test_one_base.py", "pipeline/test_evaluation.py"),
    *("models/test_flat_attention.py", "core/test_logprobs.py", "rewards/test_dense.py", "choice/test_measure.py"),
)
"""What loads with `device: auto`, trains, or chooses a kernel by the device."""


def run(settings: Settings, report: Report) -> None:
    """pytest on each file; its last line says what passed."""
    for file in FILES[:1] if settings.tiny else FILES:
        with report.item(file) as values:
            words = ["-q", "-p", "no:cacheprovider", "--tb=line", "--show-capture=no", f"tests/{file}"]
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *words], capture_output=True, text=True, check=False
            )
            lines = (done.stdout or done.stderr).strip().splitlines()
            values["last line"] = lines[-1] if lines else ""
            values["failed"] = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
            values["exit code"] = compared(float(done.returncode), 0)
