"""The benchmark of a step: its floor by hand, and that it measures what is missing, with table, JSON and plot."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from tests.support import tiny_tokenizer
from tests.tiny_models import tiny_llama

from benchmarks import common, step

ARMS = ["densepath, sampled", "TRL RLOO"]


@pytest.fixture
def rates(monkeypatch):
    """A machine of a thousand million operations and bytes a second."""
    monkeypatch.setattr(common, "rates", lambda: (SimpleNamespace(blas=1.0), 1e9))
    monkeypatch.setattr(common, "speed", lambda: {"matrix products": "made up"})
    common.machine.cache_clear()
    yield
    common.machine.cache_clear()


def test_the_floor_by_hand(rates):
    model = tiny_llama()
    weights, head = sum(p.numel() for p in model.parameters()), model.get_output_embeddings().weight.numel()
    found = step.floor(step.Setting(2, 4, 64), model, 95)
    forward = 2 * (weights - head) * (2 * 95 + 512) + 2 * head * 512
    assert found["score"] == pytest.approx(2 * forward / 1e9)  # two models
    assert found["train"] == pytest.approx(3 * forward / 1e9)  # forward once, backward twice
    # eight rows cost sixteen operations a weight, more than the four bytes to read it
    assert found["sample"] == pytest.approx((2 * (weights - head) * 190 + 64 * 16 * weights) / 1e9)
    assert found["update"] == pytest.approx(28 * weights / 1e9)


@pytest.fixture
def asked(rates, monkeypatch):
    """The arms that were asked for a step, one after the other, by stand-ins of their processes."""
    steps = []

    class Worker:
        def __init__(self, arm, setting, options):
            self.arm = arm

        def __enter__(self):
            return self

        def __exit__(self, *raised):
            pass

        def step(self):
            steps.append(self.arm)
            seconds = 1.0 if self.arm == ARMS[0] else 3.0
            return {"cpu_s": seconds, "wall_s": seconds, "peak_bytes": 2**30 * seconds}

    monkeypatch.setattr(step, "Worker", Worker)
    monkeypatch.setattr(step, "load", lambda name: (tiny_llama(), tiny_tokenizer()))
    return steps


def test_arms_that_are_measured_a_few_at_a_time_are_all_kept(asked, tmp_path, monkeypatch):
    written = tmp_path / "step.json"
    few, others = ARMS, ["densepath, all actions", "TRL GRPO"]
    for arms, turns in ((few, 2), (others, 2), (few, 0), ([few[0]], 0)):
        asked.clear()
        options = ["--settings", "2x4x64", "--threads", "1", "--pairs", "1", "--json", written, "--arms", *arms]
        monkeypatch.setattr(sys, "argv", ["x", *map(str, options)])
        step.main()
        assert asked == arms * turns
    found = json.loads(written.read_text())["tables"]["2x4x64"]
    assert [list(turn) for turn in found["turns"]] == [few, others]
    assert set(found["arms"]) == {*few, *others}


def test_it_measures_what_is_missing(asked, tmp_path, monkeypatch, capsys):
    written, drawn = tmp_path / "step.json", tmp_path / "step.svg"
    options = ["--settings", "2x4x64", "--arms", *ARMS, "--threads", "1", "--json", str(written), "--plot", str(drawn)]
    for pairs, turns in (("1", 2), ("3", 3), ("3", 0)):  # each time one more, which is not counted
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["x", *options, "--pairs", pairs])
        step.main()
        assert asked == ARMS * turns
    found = json.loads(written.read_text())["tables"]["2x4x64"]
    assert len(found["turns"]) == 3
    assert found["arms"][ARMS[0]]["to TRL RLOO"] == pytest.approx(1 / 3)
    assert found["arms"][ARMS[0]]["tokens_per_cpu_s"] == 512
    out = capsys.readouterr().out
    assert "0.33 (0.33-0.33)" in out
    assert "made up" in out
    assert drawn.read_text().lstrip().startswith("<?xml")
    for changes in (["--model", "another"], ["--threads", "7"]):  # before anything is measured
        monkeypatch.setattr(step.torch, "set_num_threads", lambda threads: None)
        monkeypatch.setattr(sys, "argv", ["x", *options, "--pairs", "9", *changes])
        with pytest.raises(SystemExit, match=f"its turns were taken with another {changes[0][2:]}: give another file"):
            step.main()
    monkeypatch.setattr(step, "commit", lambda: "another")
    monkeypatch.setattr(sys, "argv", ["x", *options, "--pairs", "9"])
    with pytest.raises(SystemExit, match="another commit"):
        step.main()
    assert len(json.loads(written.read_text())["tables"]["2x4x64"]["turns"]) == 3
