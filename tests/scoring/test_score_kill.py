"""kill -9 while scoring, and the same command again: nothing lost, nothing double, every byte as if uninterrupted."""

from __future__ import annotations

import json

import pytest
from tests.pipeline.runs import save_tiny_model
from tests.scoring.test_score_job import ROWS

FSYNC = "densepath.io:os.fsync"
WRITE = "densepath.scoring.parts:PartFolder.write"
ROWS_OF_PART = "densepath.scoring.parts:write_rows"
MARKER = "densepath.scoring.parts:write_sealed_json"
SCORE = "densepath.rewards.dense:DenseReward.score_ids"
JOIN = "densepath.scoring.parts:join_parts"
RENAME = "densepath.io:os.replace"
REMOVE = "densepath.scoring.parts:remove"

# 6 windows of 4 rows, the second with a rejected row, so each write is: rejected (window 1 alone), rows, marker.
KILLS = [
    ("before the job has its manifest", {"target": FSYNC}, 0),
    ("in the first window", {"target": SCORE}, 0),
    ("a part of which half is written", {"target": ROWS_OF_PART, "when": "after"}, 0),
    ("rows without a marker", {"target": MARKER, "call": 1}, 0),
    ("the second window, its rejected row written", {"target": ROWS_OF_PART, "call": 2}, 1),
    ("a marker without its name", {"target": RENAME, "call": 3}, 1),
    ("between two windows", {"target": WRITE, "call": 3, "when": "after"}, 4),
    ("the last window done, nothing joined", {"target": WRITE, "call": 2, "when": "after"}, 6),
    ("the joined file without its name", {"target": JOIN, "when": "after"}, 6),
    ("the rejected rows alone", {"target": RENAME, "call": 2}, 6),
    ("the joined file without its manifest", {"target": MARKER}, 6),
    ("the parts not yet removed", {"target": REMOVE, "call": 2}, 6),
    ("the parts half removed", {"target": "densepath.io:shutil.rmtree"}, 0),
]


def outputs(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_window_that_lost_rows_is_scored_again(tmp_path, tiny_model, forks):
    other = save_tiny_model(tmp_path / "models" / "ref", seed=1)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    words = ["score", "--model_name_or_path", tiny_model, "--ref_model_name_or_path", other, "--window_size", "4"]
    words += ["--dataset_name", data, "--output_file", tmp_path / "s.jsonl"]
    assert forks.run(words, hook={"target": "densepath.scoring.parts:PartFolder.merge"}) == -9, forks.stderr
    whole = [(tmp_path / f"s.parts/0000000{window}.jsonl").read_bytes() for window in range(2)]
    (tmp_path / "s.parts/00000001.jsonl").write_bytes(b"")
    (tmp_path / "s.parts/00000000.json").write_text("{")
    marker = tmp_path / "s.parts/00000002.json"
    marker.write_text(marker.read_text().replace('"rows": 4', '"rows": 5'))
    assert forks.run(words) == 0, forks.stderr
    assert forks.stderr.count("the same command scores this window again") == 3
    manifest = tmp_path / "s.manifest.json"
    whole_manifest = manifest.read_text()
    assert json.loads(whole_manifest)["result"]["rows"] == len(ROWS)
    manifest.write_text(whole_manifest.replace(f'"rows": {len(ROWS)}', '"rows": 7'))
    assert forks.run(words) == 1
    assert f"{manifest} is damaged, it is not what was written: move s.jsonl away to begin anew" in forks.stderr
    manifest.write_text(whole_manifest)
    scored = (tmp_path / "s.jsonl").read_bytes()
    assert scored.startswith(b"".join(whole))
    (tmp_path / "s.jsonl").write_bytes(scored[:-9])
    assert forks.run(words) == 1
    assert "s.jsonl: not what" in forks.stderr
    assert "move s.jsonl away to begin anew" in forks.stderr


@pytest.mark.parametrize("suffix", ["jsonl", pytest.param("parquet", marks=pytest.mark.slow)])
def test_killed_anywhere_equals_uninterrupted(tmp_path, tiny_model, forks, suffix):
    other = save_tiny_model(tmp_path / "models" / "ref", seed=1)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:5], {"id": "bad"}, *ROWS[5:]]), encoding="utf-8")
    words = ["score", "--model_name_or_path", tiny_model, "--ref_model_name_or_path", other, "--window_size", "4"]
    words += ["--dataset_name", data, "--output_file"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert forks.run([*words, tmp_path / "whole" / f"s.{suffix}"]) == 0, forks.stderr
    argv, name = [*words, tmp_path / "killed" / f"s.{suffix}"], "s" if suffix == "jsonl" else "s.parquet"
    for what, hook, done in KILLS:
        assert forks.run(argv, hook=hook) == -9, f"{what}: not reached\n{forks.stdout}\n{forks.stderr}"
        assert len(list((tmp_path / "killed" / f"{name}.parts").glob("[0-9]*.json"))) == done, what
    assert forks.run(argv) == 0, forks.stderr
    assert "nothing to do" in forks.stdout  # the last kill came when all was there
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == sorted(
        [f"s.{suffix}", f"{name}.manifest.json", f"{name}.rejected.jsonl"]
    )
