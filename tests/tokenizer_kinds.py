"""Tokenizers of the kinds that causal models come with, and chat templates as they are found, all built in code."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD, TURN, UNK = "<s>", "</s>", "<pad>", "<|turn|>", "<unk>"
_SPECIAL = [BOS, EOS, PAD, TURN, UNK]
_CORPUS = [
    "name a colour please", "the answer is blue and green", "what is two plus three", "it is five",
    "user assistant system tool", "Paris is the capital of France", "two  spaces\n\nand a new line",
] * 3  # fmt: skip

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|turn|>system\nYou help.</s>\n{% endif %}"
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
INST = (  # Llama 2, Mistral: BOS once, the answer behind a space
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}[INST] {{ m['content'] }} [/INST]{% endif %}{% endfor %}"
)
HEADERS = (  # Llama 3: nothing behind a turn's end, text trimmed
    "{{ bos_token }}{% for m in messages %}<|turn|>{{ m['role'] }}<|turn|>\n\n{{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|turn|>assistant<|turn|>\n\n{% endif %}"
)
MARKED = CHATML.replace(
    "{{ m['content'] }}</s>\n",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}</s>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}</s>\n{% endif %}",
)
STRIPPED = (  # Qwen 3: no reasoning of turns before the last question, and an empty one in an answer without
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{% set text = m['content'].split('</think>')[-1] %}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last %}<think>\n"
    "{{ m['content'].split('</think>')[0].split('<think>')[-1] if '</think>' in m['content'] else '' }}\n</think>\n\n"
    "{% endif %}{{ text }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
THINKS = (  # DeepSeek R1: asked with an open thought, which is in no answer later on, nor is the thought
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)
ROLES = (  # no special token at all
    "{% for m in messages %}{{ m['role'] | capitalize }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
LAST = (  # Phi 3: turns end in a token of their own, and EOS stands behind the conversation alone
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|turn|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
TWICE = LAST.replace("{{ m['content'] }}<|turn|>", "{{ m['content'] }}</s>")  # the same where that token is EOS
REPLACED = (  # gpt-oss: EOS behind the last answer, and a token of its own in its place behind every other
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% if loop.last and m['role'] == 'assistant' and not add_generation_prompt %}{{ eos_token }}"
    "{% else %}<|turn|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML, "inst": INST, "headers": HEADERS, "marked": MARKED, "stripped": STRIPPED, "roles": ROLES,
    "last": LAST, "twice": TWICE, "replaced": REPLACED,
}  # fmt: skip


def tokenizer_of(kind: str, template: str = "chatml") -> PreTrainedTokenizerFast:
    """A new tokenizer of one of `KINDS` with one of `TEMPLATES`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend(kind)),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[TURN],
        chat_template=TEMPLATES[template],
        clean_up_tokenization_spaces=False,
    )


@cache
def _backend(kind: str) -> str:
    return str(KINDS[kind]().to_str())


def _byte_level(around: str = "$A") -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return _surrounded(backend, around)


def _sentencepiece(scheme: str | None, around: str = "$A", unigram: bool = False) -> Any:
    """Llama 2 and Mistral: a mark for spaces, put before the text by a pre-tokenizer, or (None) by a normaliser."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    specials = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))]
    backend: Any = Tokenizer(models.Unigram() if unigram else models.BPE(byte_fallback=True, unk_token=UNK))
    if scheme is None:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=unigram)
    strip = decoders.Strip(" ", 1, 0)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip])
    if unigram:
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=_SPECIAL, unk_token=UNK, show_progress=False
        )
    else:
        trainer = trainers.BpeTrainer(vocab_size=len(specials) + 150, special_tokens=specials, show_progress=False)
    backend.train_from_iterator(_CORPUS, trainer)
    return _surrounded(backend, around)


def _word_pieces() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.WordPiece(unk_token=UNK))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        _CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=_SPECIAL, show_progress=False)
    )
    return _surrounded(backend, f"{BOS} $A {EOS}")


def _words() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend: Any = Tokenizer(models.WordLevel(unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator(_CORPUS, trainers.WordLevelTrainer(special_tokens=_SPECIAL, show_progress=False))
    return backend


def _surrounded(backend: Any, around: str) -> Any:
    from tokenizers import processors

    if around != "$A":
        ids = [(token, backend.token_to_id(token)) for token in (BOS, EOS)]
        backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return backend


KINDS: dict[str, Callable[[], Any]] = {
    "byte level": _byte_level,
    "byte level, BOS": lambda: _byte_level(f"{BOS} $A"),
    "byte level, BOS and EOS": lambda: _byte_level(f"{BOS} $A {EOS}"),
    "metaspace first": lambda: _sentencepiece("first"),
    "metaspace first, BOS": lambda: _sentencepiece("first", f"{BOS} $A"),
    "metaspace always, EOS": lambda: _sentencepiece("always", f"$A {EOS}"),
    "legacy normaliser, BOS": lambda: _sentencepiece(None, f"{BOS} $A"),
    "unigram": lambda: _sentencepiece("always", f"{BOS} $A {EOS}", unigram=True),
    "word pieces, BOS and EOS": _word_pieces,
    "words": _words,
}
