"""The one layout of a scored completion: what is written is what is read, and all that hold it have its fields."""

import json

import pytest

from densepath.errors import DataError
from densepath.records.codec import field_names, from_json
from densepath.records.completion import Sample, ScoredCompletion, Span, completion_of
from densepath.scoring.tables import score_schema

OF_SAMPLES = {"metric", "truncated"}
READ = ("Jaé", [10, 11, 12, 2], ["Ja", "é", "é", "<|im_end|>"], [(0, 2), (2, 3), (2, 3), (3, 3)])
REWARDS = [-0.25, 0.5, -1.0, 0.5]


def test_sum_and_mean_by_hand():
    found = completion_of(READ, REWARDS)
    assert (found.sum, found.mean) == (-0.25, -0.0625)


def test_runs_of_whole_characters():
    """The last character is two tokens; EOS has no place in the text, and stands alone."""
    found = completion_of(READ, REWARDS, sft_logprobs=[-1.0, -2.0, -3.0, -4.0])
    assert found.spans == (
        Span("Ja", (10,), (-0.25,), (-1.0,)),
        Span("é", (11, 12), (0.5, -1.0), (-2.0, -3.0)),
        Span("<|im_end|>", (2,), (0.5,), (-4.0,)),
    )
    assert [span.reward for span in found.spans] == [-0.25, -0.5, 0.5]
    twice = completion_of(("", [2, 2], ["<e>", "<e>"], [(0, 0), (0, 0)]), [1.0, 2.0])
    assert [span.reward for span in twice.spans] == [1.0, 2.0]  # empty places share no character


@pytest.mark.parametrize("known", [{}, {"sft_logprobs": [-1.0] * 4, "metric": 0.0, "truncated": False}])
def test_what_is_written_is_what_is_read_and_what_is_not_known_is_left_out(known):
    found = completion_of(READ, REWARDS, **known)
    written = json.loads(json.dumps(found.to_json()))
    assert from_json(ScoredCompletion, written) == found
    assert set(written) == {"text", "token_ids", "tokens", "offsets", "rewards", "sum", "mean", *known}


def test_a_sample_comes_back():
    sample = Sample("7", "Yes?", None, "a", {"sft": completion_of(READ, REWARDS, metric=1.0)})
    assert from_json(Sample, json.loads(json.dumps(sample.to_json()))) == sample


def test_arms_differ_in_the_metric_or_else_in_their_text():
    one, other = (
        completion_of(READ, REWARDS, metric=1.0),
        completion_of(("x", [1], ["x"], [(0, 1)]), [0.5], metric=1.0),
    )
    assert not Sample("7", "", None, None, {"a": one, "b": other}).differs
    blind = completion_of(READ, REWARDS)
    assert Sample("7", "", None, None, {"a": blind, "b": other}).differs
    assert not Sample("7", "", None, None, {"a": blind, "b": one}).differs


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(DataError, match=r"lists of \[4, 4, 4, 3\] entries; give one entry a token"):
        completion_of(READ, REWARDS[:3])
    with pytest.raises(DataError, match="at least one"):
        completion_of(("", [], [], []), [])


def test_parquet_and_the_server_have_the_same_fields():
    scored = [name for name in field_names(ScoredCompletion) if name not in OF_SAMPLES]
    turn = score_schema(logprobs=True).field("turns").type.value_type
    assert [turn.field(index).name for index in range(turn.num_fields)] == scored
    schemas = pytest.importorskip("densepath.serve.schemas")
    assert list(schemas.ItemScores.model_fields) == scored
