"""Packing: every completion token is predicted once, from exactly its own prompt and prefix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.models import packing
from densepath.models.packing import IGNORED_LABEL, Layout, Segment, cut, pack


def context_of(batch, row: int, column: int) -> list[int]:
    """The tokens that a position attends to, ordered by their position ids: what the model conditions on."""
    if batch.segments:
        start, _, context = next(s for s in batch.segments if s.start <= column < s.stop)
        seen = torch.tensor([at for span in (*context, (start, column + 1)) for at in range(*span)])
        assert batch.position_ids[row, seen].tolist() == list(range(len(seen)))
        return batch.input_ids[row, seen].tolist()
    if batch.attention_mask.dim() == 2:
        assert batch.attention_mask[row, : column + 1].all()
        return batch.input_ids[row, : column + 1].tolist()
    seen = batch.attention_mask[row, 0, column].nonzero().flatten()
    order = batch.position_ids[row, seen].argsort(stable=True)
    return batch.input_ids[row, seen[order]].tolist()


def test_two_completions_of_one_prompt_by_hand():
    # [1 2 3 7] predicts 7 at the 3 and 8 at the 7; the other completion repeats the 3 that predicts it
    (batch,) = pack([[1, 2, 3], [1, 2, 3]], [[7, 8], [9]], Layout.FLAT)
    x = IGNORED_LABEL
    assert batch.input_ids.tolist() == [[1, 2, 3, 7, 3]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.labels.tolist() == [[x, x, 7, 8, 9]]
    assert batch.segments == (Segment(0, 4, ()), Segment(4, 5, ((0, 2),)))
    assert (batch.sequences, batch.columns, batch.lengths) == ((0, 1), (2, 4), (2, 1))
    (masked,) = pack([[1, 2, 3], [1, 2, 3]], [[7, 8], [9]], Layout.PACKED)
    assert masked.input_ids.tolist() == batch.input_ids.tolist()
    assert masked.attention_mask[0, 0].long().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],  # the second completion sees the shared prompt and itself, not the first one
    ]


def test_prompts_that_begin_alike_are_nested_by_hand():
    prompts = [[9, 8, 1, 2], [9, 8, 1, 2], [9, 8, 3], [5, 6]]
    (batch,) = pack(prompts, [[4], [5], [6, 7], [1]], Layout.FLAT)
    assert batch.input_ids.tolist() == [[5, 6, 9, 8, 1, 2, 2, 3, 6]]
    spans = [segment.context for segment in batch.segments]
    assert spans == [(), (), ((2, 5),), ((2, 4),)]
    assert batch.sequences == (3, 0, 1, 2)


prompt_of = st.sampled_from([(1,), (1, 2), (1, 2, 3), (1, 2, 4, 5, 6), (4, 5, 6, 7)])
sequences = st.lists(
    st.tuples(prompt_of, st.lists(st.integers(1, 6), min_size=0, max_size=6)), min_size=1, max_size=9
)  # few different tokens, so that prompts coincide and continue one another
layouts, budgets = st.sampled_from(Layout), st.one_of(st.none(), st.integers(1, 40))


@settings(deadline=None, max_examples=150)
@given(sequences, layouts, st.integers(1, 24), budgets)
def test_each_token_is_predicted_once_from_its_own_context(rows, layout, row_tokens, token_budget):
    prompts, completions = [list(p) for p, _ in rows], [c for _, c in rows]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "ROW_TOKENS", row_tokens)
        batches = list(pack(prompts, completions, layout, token_budget=token_budget))
    for batch in batches:
        assert layout is not Layout.FLAT or batch.attention_mask.all()
        for index, row, column, length in zip(batch.sequences, batch.rows, batch.columns, batch.lengths, strict=True):
            assert length == len(completions[index])
            for t in range(length):
                assert batch.labels[row, column + t] == completions[index][t]
                assert context_of(batch, row, column + t) == prompts[index] + completions[index][:t]
            seen.append(index)
        assert int((batch.labels != IGNORED_LABEL).sum()) == sum(batch.lengths)
        assert len(set(zip(*(at.tolist() for at in batch.predicting()), strict=True))) == sum(batch.lengths)
    assert sorted(seen) == [index for index, completion in enumerate(completions) if completion]


@settings(deadline=None, max_examples=60)
@given(sequences)
def test_a_flat_row_has_what_no_sequence_before_it_had(rows):
    """No more than the beginnings of prompts, each once, and a position for each prediction."""
    kept = [([*p], c) for p, c in rows if c]
    batches = list(pack([p for p, _ in kept], [c for _, c in kept], Layout.FLAT))
    prompts = {tuple(p[:t]) for p, _ in kept for t in range(1, len(p))}
    predictions = sum(len(c) for _, c in kept)
    assert sum(batch.input_ids.numel() for batch in batches) <= len(prompts) + predictions


def test_token_budget_bounds_every_batch_but_a_longer_sequence(monkeypatch):
    monkeypatch.setattr(packing, "ROW_TOKENS", 10)
    prompts = [[k, 1, 2, 3] for k in range(8)]
    for layout in (Layout.FLAT, Layout.PACKED, Layout.PADDED):
        batches = list(pack(prompts, [[5, 6]] * 8, layout, token_budget=20))
        assert len(batches) > 1
        assert all(batch.input_ids.numel() <= 20 for batch in batches)
    (alone,) = pack([[1] * 30], [[2] * 30], Layout.FLAT, token_budget=8)
    assert alone.input_ids.shape == (1, 59)


def test_a_long_prompt_is_not_computed_again_for_each_completion():
    prompt = [*range(1, 31)]
    batches = list(pack([prompt] * 10, [[50 + k] * 8 for k in range(10)], Layout.FLAT, token_budget=32))
    # one completion of a row that begins with the prompt, then as many as the budget holds beside it
    assert sorted(batch.input_ids.numel() for batch in batches) == [29 + 8, 29 + 8, 29 + 32, 29 + 32]


def test_turns_of_a_conversation_are_one_run_by_hand():
    # [1 2] answers 3 4; then the user says 5 and it answers 6; another answer to [1 2] is 7
    (batch,) = pack([[1, 2], (1, 2, 3, 4, 5), [1, 2]], [[3, 4], [6], [7]], Layout.FLAT)
    x = IGNORED_LABEL
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 2]]
    assert batch.labels.tolist() == [[x, 3, 4, x, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 1]]
    assert batch.segments == (Segment(0, 5, ()), Segment(5, 6, ((0, 1),)))
    assert (batch.sequences, batch.columns, batch.lengths) == ((0, 1, 2), (1, 4, 5), (2, 1, 1))
    for layout in (Layout.PACKED, Layout.PADDED):  # one row, in whatever order they come
        (alone,) = pack([[1, 2, 3, 4, 5], [1, 2]], [[6], [3, 4]], layout)
        assert alone.input_ids.tolist() == [[1, 2, 3, 4, 5]]


def test_padded_rows_hold_one_sequence_each():
    (batch,) = pack([[1, 2], [1, 2]], [[3, 4, 5], [6]], Layout.PADDED)
    assert batch.input_ids.shape == (2, 4)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9)), max_size=4), st.integers(0, 40), st.integers(0, 40))
def test_spans_are_cut_as_lists_are(pieces, start, stop):
    spans = tuple((first, first + length) for first, length in pieces)
    columns = [at for span in spans for at in range(*span)]
    assert [at for span in cut(spans, start, stop) for at in range(*span)] == columns[start:stop]


def test_refuses_empty_prompts_and_unequal_lists():
    with pytest.raises(ValueError, match="sequence 0: the prompt is empty"):
        list(pack([[]], [[1]], Layout.FLAT))
    with pytest.raises(ValueError, match="2 prompts but 1 completions"):
        list(pack([[1], [2]], [[1]], Layout.FLAT))
