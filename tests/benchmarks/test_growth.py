"""The benchmark of growth fits what grows by a known power, and runs, with its table, JSON and plot."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest

from benchmarks import common, growth


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_a_known_power_is_found(power):
    sizes = [32, 64, 128, 256, 512]
    noise = [3.0, 1.0, 1.0, 1.0, 1.0]  # what does not grow weighs on small sizes
    values = [each * size**power for each, size in zip(noise, sizes, strict=True)]
    assert growth.exponent(sizes, values) == pytest.approx(power, abs=1e-9)


def test_one_size_has_no_exponent_and_is_refused_before_it_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(growth, "measured", lambda *args: pytest.fail("nothing is to be measured"))
    monkeypatch.setattr(sys, "argv", ["x", "--axes", "prompts", "--most", "3", "--threads", "1"])
    with pytest.raises(SystemExit):
        growth.main()
    assert "--most 3 leaves less than two sizes of prompts" in capsys.readouterr().err


def test_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "PROMPT", 4)
    monkeypatch.setattr(growth, "WIDTHS", {**growth.WIDTHS, "hidden_size": 32, "intermediate_size": 32})
    monkeypatch.setattr(common, "speed", lambda: {"matrix products": "not measured"})
    monkeypatch.setattr(common, "rates", lambda: (SimpleNamespace(blas=1.0), 1e9))
    monkeypatch.setitem(growth.AXES, "generations", (2, 4, 8))
    written, drawn = tmp_path / "growth.json", tmp_path / "growth.svg"
    options = ["--axes", "generations", "--rounds", "1", "--threads", "1", "--json", written, "--plot", drawn]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, options)])
    common.machine.cache_clear()
    growth.main()
    found = json.loads(written.read_text())
    assert found["generations"]["sizes"] == [2, 4, 8]
    assert set(found["generations"]["exponents"]) == {"sample", "score", "train"}
    assert "not measured" in found["machine"]["matrix products"]
    assert "exponent" in capsys.readouterr().out
    assert drawn.read_text().lstrip().startswith("<?xml")
    common.machine.cache_clear()
