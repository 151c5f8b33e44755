"""Ids back to text in whole characters, and each token's place in it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import IM_END, tiny_tokenizer

from densepath.data.spans import decode_spans, read_tokens, token_offsets

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_characters_split_over_tokens_stay_whole() -> None:
    ids = ids_of("é🎉x")
    assert len(ids) == 2 + 4 + 1
    assert decode_spans(ids, TOKENIZER) == [("é", ids[:2]), ("🎉", ids[2:6]), ("x", ids[6:])]
    assert decode_spans([], TOKENIZER) == []


def test_special_tokens_are_shown() -> None:
    assert decode_spans([*ids_of("x"), EOS], TOKENIZER) == [("x", ids_of("x")), (IM_END, [EOS])]


@pytest.mark.parametrize("tokenizer", [TOKENIZER, tiny_tokenizer(byte_level=False)], ids=["bytes", "words"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_spans_join_to_the_whole(tokenizer: Any, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=20))  # invalid UTF-8 included
    spans = decode_spans(ids, tokenizer)
    assert [token for _, run in spans for token in run] == ids
    whole = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    assert "".join(text for text, _ in spans) == whole
    assert all(run for _, run in spans)


def test_a_decoder_that_treats_the_first_token_apart() -> None:
    from tokenizers import decoders

    tokenizer = tiny_tokenizer(byte_level=False)
    tokenizer.backend_tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace("answer", " answer")])
    ids = ids_of("the answer is one", tokenizer)
    assert "".join(text for text, _ in decode_spans(ids, tokenizer)) == tokenizer.decode(ids)


def test_tokens_of_a_completion_and_the_name_of_its_end() -> None:
    ids = [*ids_of("é"), EOS]
    assert read_tokens(ids, TOKENIZER) == ("é", ids, ["é", "é", IM_END], [(0, 1), (0, 1), (1, 1)])
    assert read_tokens([EOS, *ids_of("x")], TOKENIZER).tokens == [IM_END, "x"]


def test_offsets_literal() -> None:
    assert token_offsets([*ids_of("é🎉x"), EOS], TOKENIZER) == ("é🎉x", [(0, 1)] * 2 + [(1, 2)] * 4 + [(2, 3), (3, 3)])
    assert token_offsets(ids_of("x"), TOKENIZER) == ("x", [(0, 1)])  # cut: no EOS
    assert token_offsets([EOS], TOKENIZER) == ("", [(0, 0)])
    # an EOS inside is text like any other
    assert token_offsets([EOS, EOS], TOKENIZER) == (IM_END, [(0, len(IM_END)), (len(IM_END), len(IM_END))])
