"""Ids back to text in whole characters, and each token's place in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import IM_END, tiny_tokenizer

from densepath.data import spans
from densepath.data.spans import decode_spans, read_tokens, token_offsets

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id


def byte_fallback_tokenizer() -> Any:
    """As SentencePiece makes them: ASCII, and a token for each byte of everything else."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", *map(chr, range(32, 127)), *(f"<0x{byte:02X}>" for byte in range(256))]
    model = models.BPE({piece: k for k, piece in enumerate(pieces)}, [], byte_fallback=True, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def straddling_tokenizer() -> Any:
    """Its last token is the second byte of "é" and its first: byte-level vocabularies hold such ones of kana."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    described = json.loads(TOKENIZER.backend_tokenizer.to_str())
    first, second = TOKENIZER.convert_ids_to_tokens(ids_of("é"))
    described["model"]["vocab"][second + first] = len(TOKENIZER)
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(described)), eos_token=IM_END)


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


FALLBACK = byte_fallback_tokenizer()


def test_characters_split_over_tokens_stay_whole() -> None:
    ids = ids_of("é🎉x")
    assert len(ids) == 2 + 4 + 1
    assert decode_spans(ids, TOKENIZER) == [("é", ids[:2]), ("🎉", ids[2:6]), ("x", ids[6:])]
    assert decode_spans([], TOKENIZER) == []


@pytest.mark.parametrize("tokenizer", [TOKENIZER, FALLBACK], ids=["bytes", "fallback"])
def test_a_replacement_character_of_the_text_is_a_character_like_others(tokenizer: Any) -> None:
    """U+FFFD is what an incomplete character decodes to, and has three bytes of its own."""
    text = "\ufffd\ufffdé\ufffdx🎉\ufffd"
    assert [piece for piece, _ in decode_spans(ids_of(text, tokenizer), tokenizer)] == list(text)


def test_bytes_that_no_token_can_complete_stand_alone() -> None:
    byte = {value: ids_of(letter)[0] for value, letter in ((0xF0, "🎉"), (0xC3, "é"))}
    ids = [byte[0xC3], byte[0xF0], *ids_of("é🎉")[:4], *ids_of("x")]
    runs = [("\ufffd", ids[:1]), ("\ufffd", ids[1:2]), ("é", ids[2:4]), ("\ufffd", ids[4:6]), ("x", ids[6:])]
    assert decode_spans(ids, TOKENIZER) == runs


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of tokens of each call that decodes some."""
    decoded: list[int] = []
    decode = spans.decode

    def counting(some: list[int], tokenizer: Any) -> str:
        decoded.append(len(some))
        return decode(some, tokenizer)

    monkeypatch.setattr(spans, "decode", counting)
    return decoded


CUT = ids_of("🎉", FALLBACK)[:3]


@pytest.mark.parametrize(
    ("odd", "runs"),
    [
        ([*CUT, *ids_of("🎉", FALLBACK)], [("\ufffd", 1)] * 7),  # bytes that are no UTF-8 as a whole
        ([*CUT, FALLBACK.convert_tokens_to_ids("<0x0A>")], [("\ufffd", 1)] * 4),  # a line's end is a byte of them
        (ids_of("🎉\ufffd🎉", FALLBACK), [("🎉", 4), ("\ufffd", 3), ("🎉", 4)]),
    ],
    ids=["cut", "cut at a line's end", "replacement"],
)
def test_a_fault_stays_in_its_own_stretch_of_bytes(
    monkeypatch: pytest.MonkeyPatch, odd: list[int], runs: list[tuple[str, int]]
) -> None:
    decoded = count_decoded(monkeypatch)
    before, behind = ids_of("x" * 1000, FALLBACK), ids_of("y" * 1000, FALLBACK)
    ids = [*before, *odd, *behind]
    found = decode_spans(ids, FALLBACK)
    assert [(text, len(run)) for text, run in found] == [("x", 1)] * 1000 + runs + [("y", 1)] * 1000
    assert sum(decoded) <= 60 * len(ids)
    assert sum(map(len, read_tokens(ids, FALLBACK).tokens)) <= 2 * len(ids)
    # As many odd spots as there may be.
    assert len(decode_spans(ids_of("x", FALLBACK) + [*odd, *ids_of("y", FALLBACK)] * 50, FALLBACK)) == (
        1 + 50 * (len(runs) + 1)
    )


@pytest.mark.parametrize(
    ("ids", "tokenizer", "runs"),
    [
        (ids_of("\ufffd" * 300), TOKENIZER, 300),
        (ids_of("\ufffd" * 300, FALLBACK), FALLBACK, 300),
        (ids_of("é")[1:] * 900, TOKENIZER, 900),
        (ids_of("🎉")[:1] * 900, TOKENIZER, 900),
        ([ids_of("é")[0], *[len(TOKENIZER)] * 900, ids_of("é")[1]], straddling_tokenizer(), 1),
    ],
    ids=["replacements", "by fallback", "continuations", "beginnings", "straddling"],
)
def test_the_work_grows_with_the_number_of_tokens(
    monkeypatch: pytest.MonkeyPatch, ids: list[int], tokenizer: Any, runs: int
) -> None:
    """Tokens that are decoded in all are a multiple of those given: each is read with its neighbours alone."""
    decoded = count_decoded(monkeypatch)
    assert len(decode_spans(ids, tokenizer)) == runs
    assert sum(decoded) <= 60 * len(ids)


def test_special_tokens_are_shown() -> None:
    assert decode_spans([*ids_of("x"), EOS], TOKENIZER) == [("x", ids_of("x")), (IM_END, [EOS])]


@pytest.mark.parametrize(
    "tokenizer", [TOKENIZER, tiny_tokenizer(byte_level=False), FALLBACK], ids=["bytes", "words", "fallback"]
)
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
