"""Part (b): default tests that take the GPU where there is one, file by file, until the time box ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu.boxes import Report, compared

if TYPE_CHECKING:
    from benchmarks.gpu.check import Settings

FILES = ("cli/test_generate_command.py", "pipeline/test_one_base.py", "pipeline/test_selection.py")
"""Commands in the test's own process, whose truth no device changes: plain passes of saved models, counts, planted
probabilities. Most others compare with what they compute on a CPU, and `make test` hides a GPU from them."""


class _Outcomes:
    """A plugin of pytest that keeps which tests passed, and which did not."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)


def run(settings: Settings, report: Report) -> None:
    """pytest on each file, in this process: torch and TRL are imported once."""
    for file in FILES[:1] if settings.tiny else FILES:
        with report.item(file) as values:
            outcomes = _Outcomes()
            words = ["-q", "-p", "no:cacheprovider", "--tb=short", "--show-capture=no", f"tests/{file}"]
            values["exit code"] = compared(float(pytest.main(words, plugins=[outcomes])), 0)
            values["passed"], values["failed"] = len(outcomes.passed), outcomes.failed
