"""The regimes: answers by hand, mixtures as promised, prompts that training never sees."""

from __future__ import annotations

from collections import Counter

import pytest

from densepath.data.encode import encode_pairs
from densepath.data.regimes import (
    ANSWER_TOKENS,
    BEFORE_SFT,
    PROMPT_TOKENS,
    SFT,
    Demonstrator,
    Operation,
    Regime,
    answer_of,
    regime_rows,
    regime_tokenizer,
)
from densepath.data.splits import content_hash
from densepath.errors import ConfigError


@pytest.mark.parametrize(
    ("operation", "digits", "answer"),
    [
        (Operation.ROTATE, [1, 2, 3, 4], [2, 3, 4, 1]),
        (Operation.REVERSE, [1, 2, 3, 4], [4, 3, 2, 1]),
        (Operation.DEDUPE, [7, 1, 7, 2, 1], [7, 1, 2]),
        (Operation.SHIFT, [0, 6, 7, 9], [3, 9, 0, 2]),
        (Operation.SWAP, [1, 2, 3, 4, 5], [2, 1, 4, 3, 5]),
        (Operation.SWAP, [1, 2, 3, 4, 5, 6], [2, 1, 4, 3, 6, 5]),
    ],
)
def test_answers(operation, digits, answer):
    assert answer_of(operation, digits) == answer


@pytest.mark.parametrize("regime", Regime)
def test_shares_and_what_each_demonstrator_says(regime):
    rows = regime_rows(SFT[regime], 4000, seed=1)
    counts = Counter(row["demonstrator"] for row in rows)
    for demonstrator, share in SFT[regime].items():
        assert counts[demonstrator.value] / len(rows) == pytest.approx(share, abs=0.03)  # 4 standard errors
    for row in rows:
        operation, *words = row["prompt"].split()
        digits = [int(word) for word in words if word.isdigit()]
        assert row["answer"] == " ".join(map(str, answer_of(Operation(operation), digits)))
        said, answer = row["completion"].split(), row["answer"].split()
        if row["demonstrator"] == "correct":
            assert said == answer
        elif row["demonstrator"] == "copy":
            assert said == list(map(str, digits))
        elif row["demonstrator"] == "drop_last":
            assert said == answer[:-1] or len(answer) == 1
        else:
            assert len(said) == len(answer)
    if regime is Regime.SCRATCH:
        pairs = [pair for row in rows for pair in zip(row["completion"].split(), row["answer"].split(), strict=True)]
        # replaced with probability .1 by one of ten digits: .09 differ
        assert sum(a != b for a, b in pairs) / len(pairs) == pytest.approx(0.09, abs=0.01)


def test_held_out_prompts_differ_from_those_of_training():
    rows, others = regime_rows(SFT[Regime.HABIT], 3000, seed=0), regime_rows(SFT[Regime.HABIT], 300, seed=5)
    held_out = regime_rows(SFT[Regime.HABIT], 1000, seed=0, held_out=True)
    assert len({row["prompt"] for row in held_out}) == 1000
    assert all(int(content_hash(row), 16) % 8 == 0 for row in held_out)
    assert not {row["prompt"] for row in held_out} & {row["prompt"] for row in rows + others}


def test_seeds_decide_and_longer_calls_begin_alike():
    short, long = (regime_rows(BEFORE_SFT[Regime.NOVEL], n, seed=3) for n in (50, 200))
    assert long[:50] == short
    assert regime_rows(BEFORE_SFT[Regime.NOVEL], 50, seed=4) != short


def test_ids_of_prompts_and_answers():
    tokenizer = regime_tokenizer()
    assert len(tokenizer) == 18
    for row in regime_rows(SFT[Regime.NOVEL], 200, seed=2):
        (pair,) = encode_pairs(row, tokenizer)
        assert len(pair.prompt_ids) == PROMPT_TOKENS
        assert pair.prompt_ids[-1] == tokenizer.sep_token_id
        assert len(pair.completion_ids) <= ANSWER_TOKENS
        assert pair.completion_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(pair.completion_ids, skip_special_tokens=True) == row["completion"]


@pytest.mark.parametrize("mixture", [{}, {Demonstrator.COPY: 0.5}, {Demonstrator.COPY: 1.5, Demonstrator.NOISE: -0.5}])
def test_a_mixture_that_is_none_is_refused(mixture):
    with pytest.raises(ConfigError, match="must be at least 0 and add up to 1"):
        regime_rows(mixture, 1, seed=0)
