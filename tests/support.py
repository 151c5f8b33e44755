"""What several test rooms share: tiny tokenizers, trained in code, the same on every machine."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IM_START, IM_END, PAD, UNK = "<|im_start|>", "<|im_end|>", "<|pad|>", "<|unk|>"

# ChatML as real templates have it: a default system prompt where none is given, "\n" behind every EOS, and no
# {% generation %} marks.
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_CORPUS = (
    "system user assistant You help. Reply with the answer only.",
    "Reverse this list: cat, dog, sun Sort these words alphabetically: tree, moon, star",
    "What is the last word of this list? Write these words in capitals: CAT, DOG, SUN",
    "How many words are in this list? 3 4 5 Sort these numbers from low to high: 12, 7, 40",
    "the answer is one two three\n\n",  # makes "\n\n" one token, so that borders can merge
    "the question was: what comes next?\n\n",
)
_VOCAB_SIZE = 384


def tiny_tokenizer(pad_is_eos: bool = True, byte_level: bool = True) -> PreTrainedTokenizerFast:
    """Fast tokenizer with a vocabulary below 400 and a ChatML-like chat template.

    Args:
        pad_is_eos: the pad token is the EOS token, as in SmolLM2; else a token of its own.
        byte_level: byte-level BPE that encodes any text losslessly; else whole words of a fixed list, and <|unk|>.

    Returns:
        A new tokenizer at each call, so that a test may change it.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_byte_level_json() if byte_level else _word_level_json())
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=IM_END,
        pad_token=IM_END if pad_is_eos else PAD,
        unk_token=None if byte_level else UNK,
        additional_special_tokens=[IM_START],
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


@cache
def _byte_level_json() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=[IM_START, IM_END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())


@cache
def _word_level_json() -> str:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=_VOCAB_SIZE, special_tokens=[IM_START, IM_END, PAD, UNK], show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())
