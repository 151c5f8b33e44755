"""What every table of the benchmarks says, and that the rows they make up are no cheaper than real ones."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from tests.pipeline.runs import save_tiny_model
from tests.support import tiny_tokenizer

from benchmarks import common, growth, sampling, scoring, serving, sft, step


@pytest.fixture
def machine(monkeypatch):
    """A machine of a thousand million operations and bytes a second."""
    monkeypatch.setattr(common, "rates", lambda: (SimpleNamespace(blas=1.0), 1e9))
    monkeypatch.setattr(common, "speed", lambda: {"matrix products": "made up"})
    common.machine.cache_clear()
    yield
    common.machine.cache_clear()


def test_what_several_sequences_begin_with_counts_once():
    assert common.distinct([[1, 2, 3], [1, 2, 4], [1, 2], [5], [1, 2, 3]]) == 5
    assert common.distinct([]) == 0


def test_no_completion_that_is_made_up_is_there_twice():
    options = SimpleNamespace(dataset_name=None, prompts=3, num_generations=8)
    prompts, completions = common.rows(options, tiny_tokenizer())
    assert len(prompts) == len({(*prompt, *ids) for prompt, ids in zip(prompts, completions, strict=True)}) == 24


def test_a_table_says_what_its_figures_rest_on(machine, capsys):
    found = common.side_by_side({"a": lambda: sum(range(10**5))}, 5, tokens=10, floor={"all": 1e-9})
    assert found["a"]["times_floor"] == pytest.approx(found["a"]["cpu_s"] / 1e-9)
    said = capsys.readouterr().out
    assert all(each in said for each in ("wall s", "CPU s", "x floor", "floor: all", "made up"))


def test_scoring_says_where_the_time_goes(machine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scoring, "peaks", lambda *given: {})
    monkeypatch.delitem(scoring.ARMS, scoring.VLLM, raising=False)
    written = tmp_path / "scoring.json"
    words = ["--model", save_tiny_model(tmp_path / "model"), "--rounds", "1", "--prompts", "2", "--json", written]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, words), "--num-generations", "2", "--threads", "1"])
    scoring.main()
    found = json.loads(written.read_text())
    assert set(found["time"]) == set(found["phases"]) == set(scoring.ARMS)
    for seconds in found["phases"].values():
        assert min(seconds.values()) > 0
    assert set(found["floor"]) == {scoring.PRODUCTS, scoring.HEAD}
    assert "its arm is left out" in capsys.readouterr().out


@pytest.mark.parametrize("benchmark", [step, scoring, sampling, sft, growth, serving])
def test_five_rounds_are_the_default(benchmark, monkeypatch):
    """Medians of `make bench` are of at least five interleaved rounds."""
    seen = []
    parse = common.Parser.parse_args

    def parsed(self, *given):
        seen.append(parse(self, *given))
        raise SystemExit

    monkeypatch.setattr(common.Parser, "parse_args", parsed)
    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert (vars(seen[0]).get("rounds") or seen[0].pairs) >= 5
