"""Packing: every completion token is predicted once, from exactly its own prompt and prefix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.models.packing import IGNORED_LABEL, pack


def context_of(batch, row: int, column: int) -> list[int]:
    """The tokens that a position attends to, ordered by their position ids: what the model conditions on."""
    if batch.attention_mask is None:  # causal attention: everything up to it, at consecutive positions
        assert batch.position_ids[row].tolist() == list(range(batch.position_ids.shape[1]))
        return batch.input_ids[row, : column + 1].tolist()
    seen = batch.attention_mask[row, 0, column].nonzero().flatten()
    order = batch.position_ids[row, seen].argsort(stable=True)
    return batch.input_ids[row, seen[order]].tolist()


def test_two_completions_of_one_prompt_by_hand():
    # prompt [1 2 3]; branches repeat the 3: [3 7 | 8] predicts 7 8 9?  no: completion [7, 8] is predicted at 3 and 7
    (batch,) = pack([[1, 2, 3], [1, 2, 3]], [[7, 8], [9]])
    assert batch.input_ids.tolist() == [[1, 2, 3, 7, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    x = IGNORED_LABEL
    assert batch.labels.tolist() == [[x, x, 7, 8, 9]]
    assert batch.attention_mask[0, 0].long().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second branch sees the shared prompt and itself, not the first branch
    ]
    assert (batch.sequences, batch.columns, batch.lengths) == ((0, 1), (2, 4), (2, 1))


sequences = st.lists(
    st.tuples(
        st.sampled_from([(1,), (1, 2), (1, 2, 3), (4, 5, 6, 7)]), st.lists(st.integers(10, 50), min_size=0, max_size=6)
    ),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=60)
@given(
    sequences,
    st.integers(1, 24),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_each_token_is_predicted_once_from_its_own_context(rows, row_tokens, token_budget):
    prompts, completions = [list(p) for p, _ in rows], [c for _, c in rows]
    seen = set()
    for batch in pack(prompts, completions, row_tokens=row_tokens, token_budget=token_budget, pad_token_id=99):
        for index, row, column, length in zip(batch.sequences, batch.rows, batch.columns, batch.lengths, strict=True):
            assert length == len(completions[index])
            for t in range(length):
                assert batch.labels[row, column + t] == completions[index][t]
                assert context_of(batch, row, column + t) == prompts[index] + completions[index][:t]
            seen.add(index)
        predicting = batch.labels != IGNORED_LABEL
        assert int(predicting.sum()) == sum(batch.lengths)
    assert seen == {index for index, completion in enumerate(completions) if completion}


def test_token_budget_bounds_every_batch_but_a_longer_sequence():
    prompts = [[1, 2, 3, k] for k in range(8)]
    batches = list(pack(prompts, [[5, 6]] * 8, token_budget=20, row_tokens=10))
    assert len(batches) > 1
    assert all(batch.input_ids.numel() <= 20 for batch in batches)
    (alone,) = pack([[1] * 30], [[2] * 30], token_budget=8)
    assert alone.input_ids.shape == (1, 59)


def test_turns_of_a_conversation_are_one_run_by_hand():
    # [1 2] answers 3 4; then the user says 5 and it answers 6; another answer to [1 2] is 7
    (batch,) = pack([[1, 2], (1, 2, 3, 4, 5), [1, 2]], [[3, 4], [6], [7]])
    x = IGNORED_LABEL
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 2]]
    assert batch.labels.tolist() == [[x, 3, 4, x, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 1]]
    assert context_of(batch, 0, 4) == [1, 2, 3, 4, 5]
    assert context_of(batch, 0, 5) == [1, 2]
    assert (batch.sequences, batch.columns, batch.lengths) == ((0, 1, 2), (1, 4, 5), (2, 1, 1))
    # without the last answer no mask is needed, and with another order they are sequences of their own
    (alone,) = pack([[1, 2], [1, 2, 3, 4, 5]], [[3, 4], [6]])
    assert alone.attention_mask is None
    assert alone.input_ids.tolist() == [[1, 2, 3, 4, 5]]
    (apart,) = pack([[1, 2, 3, 4, 5], [1, 2]], [[6], [3, 4]])
    assert apart.input_ids.numel() == 5 + 3


conversations = st.lists(
    st.lists(st.tuples(st.lists(st.integers(1, 3), max_size=2), st.lists(st.integers(1, 3), min_size=1, max_size=3)),
             min_size=1, max_size=4),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(conversations, st.integers(1, 24), st.one_of(st.none(), st.integers(1, 40)), st.booleans())
def test_conversations_are_predicted_turn_by_turn_from_all_before(turns_of, row_tokens, token_budget, padded):
    """Few different tokens, so that prompts coincide and continue one another in unplanned ways too."""
    prompts, completions = [], []
    for turns in turns_of:
        before = [9]
        for state, action in turns:
            prompts.append(before := [*before, *state])
            completions.append(action)
            before = [*before, *action]
    seen = []
    for batch in pack(prompts, completions, row_tokens=row_tokens, token_budget=token_budget, padded=padded):
        for index, row, column, length in zip(batch.sequences, batch.rows, batch.columns, batch.lengths, strict=True):
            for t in range(length):
                assert batch.labels[row, column + t] == completions[index][t]
                context = (
                    batch.input_ids[row, : column + t + 1].tolist() if padded else context_of(batch, row, column + t)
                )
                assert context == prompts[index] + completions[index][:t]
            seen.append(index)
        assert int((batch.labels != IGNORED_LABEL).sum()) == sum(batch.lengths)
    assert sorted(seen) == list(range(len(prompts)))


def test_rows_of_one_sequence_need_no_mask():
    (batch,) = pack([[1, 2, 3], [4]], [[5, 6], [7]], row_tokens=1)
    assert batch.attention_mask is None
    assert batch.input_ids.tolist() == [[1, 2, 3, 5], [4, 0, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 2
    (shared,) = pack([[1, 2, 3], [4]], [[5, 6], [7]])
    assert shared.attention_mask is not None


def test_padded_rows_hold_one_sequence_each():
    (batch,) = pack([[1, 2], [1, 2]], [[3, 4, 5], [6]], padded=True)
    assert batch.input_ids.shape == (2, 4)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_split_cuts_values_back_into_sequences():
    (batch,) = pack([[1, 2, 3], [1, 2, 3]], [[7, 8], [9]])
    values = torch.arange(5.0).unsqueeze(0)
    assert [part.tolist() for part in batch.split(values)] == [[2.0, 3.0], [4.0]]


def test_refuses_empty_prompts_and_unequal_lists():
    with pytest.raises(ValueError, match="sequence 0: the prompt is empty"):
        list(pack([[]], [[1]]))
    with pytest.raises(ValueError, match="2 prompts but 1 completions"):
        list(pack([[1], [2]], [[1]]))
