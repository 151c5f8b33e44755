"""Demonstrations whose errors are known: digit tasks in which the dense reward is right, and in which it is wrong.

A demonstrator answers rightly, or makes one of the errors below; only its mixture decides whether the reward
`log pi_SFT - log pi_ref` points towards the right answer:

    habit    the model before SFT already copied its input; SFT makes that rarer. Against it the reward is right.
    novel    SFT adds an error that the model before it never made. Against it the reward asks for that error.
    worse    as novel, but that error is the most frequent answer: two fifths of them, and a quarter is right.
    scratch  there is no model before SFT; each token of a demonstration is noise now and then.

Every prompt is `operation digits... <pad>... <sep>`, always 8 tokens; an answer is digits and EOS, at most 7 tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING, Any

from densepath.data.splits import content_hash
from densepath.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MIN_DIGITS, MAX_DIGITS = 4, 6
PROMPT_TOKENS = MAX_DIGITS + 2
ANSWER_TOKENS = MAX_DIGITS + 1  # EOS included
SHIFT = 3
TOKEN_NOISE = 0.1
HELD_OUT_OF = 8  # one prompt in eight is never trained on
PAD, EOS, SEP = "<pad>", "<eos>", "<sep>"


class Regime(str, Enum):
    """Where the errors of the demonstrations come from."""

    HABIT = "habit"
    NOVEL = "novel"
    WORSE = "worse"
    SCRATCH = "scratch"


class Operation(str, Enum):
    """What is asked about the digits."""

    ROTATE = "rotate"  # the first digit goes last
    REVERSE = "reverse"
    DEDUPE = "dedupe"  # of equal digits the first stays
    SHIFT = "shift"  # each digit + 3, modulo 10
    SWAP = "swap"  # neighbours change places, pair by pair


class Demonstrator(str, Enum):
    """How a demonstration came about."""

    CORRECT = "correct"
    COPY = "copy"  # the input as it was given
    DROP_LAST = "drop_last"  # the right answer without its last digit, if it has several
    NOISE = "noise"  # the right answer, each digit replaced by a random one with probability 0.1


BEFORE_SFT: Mapping[Regime, Mapping[Demonstrator, float]] = {
    Regime.HABIT: {Demonstrator.CORRECT: 0.3, Demonstrator.COPY: 0.7},
    Regime.NOVEL: {Demonstrator.CORRECT: 0.3, Demonstrator.COPY: 0.7},
    Regime.WORSE: {Demonstrator.CORRECT: 0.3, Demonstrator.COPY: 0.7},
    Regime.SCRATCH: {},
}
"""Mixture that the model before SFT is trained on; none where SFT starts from random weights."""

SFT: Mapping[Regime, Mapping[Demonstrator, float]] = {
    Regime.HABIT: {Demonstrator.CORRECT: 0.45, Demonstrator.COPY: 0.55},
    Regime.NOVEL: {Demonstrator.CORRECT: 0.45, Demonstrator.COPY: 0.3, Demonstrator.DROP_LAST: 0.25},
    Regime.WORSE: {Demonstrator.CORRECT: 0.25, Demonstrator.COPY: 0.35, Demonstrator.DROP_LAST: 0.4},
    Regime.SCRATCH: {Demonstrator.NOISE: 1.0},
}
"""Mixture of the demonstrations that SFT imitates."""


def regime_rows(
    mixture: Mapping[Demonstrator, float], n: int, *, seed: int, held_out: bool = False
) -> list[dict[str, Any]]:
    """Demonstrations from a mixture of demonstrators.

    Args:
        mixture: demonstrator -> probability; from `SFT` or `BEFORE_SFT`, or one of your own.
        n: rows to make.
        seed: of the draws; the first k rows of a longer call are those of a call for k.
        held_out: False draws from seven eighths of all prompts, with repetition; True from the last eighth, without.

    Returns:
        Rows with `prompt`, `completion` and `answer` (the right one), as text, and `operation` and `demonstrator`.

    Raises:
        ConfigError: a mixture that does not add up to 1.

    >>> row = regime_rows({Demonstrator.CORRECT: 1.0}, 1, seed=0)[0]
    >>> row["prompt"], row["answer"], row["completion"] == row["answer"]
    ('shift 0 4 8 7 6 <pad> <sep>', '3 7 1 0 9', True)
    """
    if not mixture or abs(sum(mixture.values()) - 1) > 1e-9 or min(mixture.values()) < 0:
        raise ConfigError(f"the shares {dict(mixture)} must be at least 0 and add up to 1")
    return list(islice(_draws(mixture, random.Random(seed), held_out), n))


def answer_of(operation: Operation, digits: Sequence[int]) -> list[int]:
    """The right answer.

    >>> answer_of(Operation.SWAP, [1, 2, 3, 4, 5])
    [2, 1, 4, 3, 5]
    """
    values = list(digits)
    if operation is Operation.ROTATE:
        return values[1:] + values[:1]
    if operation is Operation.REVERSE:
        return values[::-1]
    if operation is Operation.DEDUPE:
        return list(dict.fromkeys(values))
    if operation is Operation.SHIFT:
        return [(value + SHIFT) % 10 for value in values]
    pairs = [values[start : start + 2][::-1] for start in range(0, len(values), 2)]
    return [value for pair in pairs for value in pair]


def regime_tokenizer() -> PreTrainedTokenizerFast:
    """Tokenizer of the 18 tokens: 5 operations, 10 digits, padding, EOS and the separator."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [PAD, EOS, SEP, *(str(digit) for digit in range(10)), *(operation.value for operation in Operation)]
    backend: Any = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, eos_token=EOS, sep_token=SEP, clean_up_tokenization_spaces=False
    )


def _draws(mixture: Mapping[Demonstrator, float], rng: random.Random, held_out: bool) -> Iterator[dict[str, Any]]:
    operations, demonstrators, shares = list(Operation), list(mixture), list(mixture.values())
    seen: set[str] = set()
    while True:
        operation = rng.choice(operations)
        digits = [rng.randrange(10) for _ in range(rng.randint(MIN_DIGITS, MAX_DIGITS))]
        prompt = " ".join([operation.value, *map(str, digits), *[PAD] * (MAX_DIGITS - len(digits)), SEP])
        if (int(content_hash({"prompt": prompt}), 16) % HELD_OUT_OF == 0) is not held_out or prompt in seen:
            continue
        if held_out:
            seen.add(prompt)
        answer = answer_of(operation, digits)
        demonstrator = rng.choices(demonstrators, shares)[0]
        yield {
            "prompt": prompt,
            "completion": _text(_said(demonstrator, digits, answer, rng)),
            "answer": _text(answer),
            "operation": operation.value,
            "demonstrator": demonstrator.value,
        }


def _said(demonstrator: Demonstrator, digits: list[int], answer: list[int], rng: random.Random) -> list[int]:
    if demonstrator is Demonstrator.COPY:
        return digits
    if demonstrator is Demonstrator.DROP_LAST:
        return answer[:-1] or answer
    if demonstrator is Demonstrator.NOISE:
        return [rng.randrange(10) if rng.random() < TOKEN_NOISE else value for value in answer]
    return answer


def _text(digits: Sequence[int]) -> str:
    return " ".join(map(str, digits))
