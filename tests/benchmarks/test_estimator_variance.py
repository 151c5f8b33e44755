"""The variance benchmark runs, on a tiny model, and says what it measures."""

from __future__ import annotations

import json
import re
import sys

from tests.pipeline.runs import save_tiny_model

from benchmarks import estimator_variance


def test_the_variance_of_every_estimator_is_printed(tmp_path, monkeypatch, capsys):
    sft, ref = (save_tiny_model(tmp_path / name, seed=seed) for seed, name in enumerate(("sft", "ref")))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"{row} + {row} ="}) + "\n" for row in range(4)))
    options = {"sft": sft, "ref": ref, "dataset_name": prompts, "max_completion_length": 4, "threads": 1}
    options |= {"batches": 3, "prompts": 2}
    monkeypatch.setattr(sys, "argv", ["x", *(word for k, v in options.items() for word in (f"--{k}", str(v)))])
    estimator_variance.main()
    out = capsys.readouterr().out
    assert len(re.findall(r"^batch \d: KL -?0\.000 nats", out, re.M)) == 3
    last = dict(re.findall(r"(sampled|all_action|mixture) ([0-9.e+-]+)", out.split("batch 3")[1]))
    assert all(float(variance) > 0 for variance in last.values())
    assert len(last) == 3
    assert re.findall(r"^(\w+)\s+(\w+)\s+[0-9.e+-]+\s+\d+%$", out, re.M)[0] == ("sampled", "completions")
