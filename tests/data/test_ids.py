"""One way from text to ids, over tokenizer kinds and templates: what TRL trains on, and what RL samples after."""

from __future__ import annotations

import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizer_kinds import BOS, EOS, KINDS, LAST, TEMPLATES, THINKS, tokenizer_of
from tokenizers import AddedToken

from densepath.data.encode import Encoded, encode_demonstration, encode_demonstrations, encode_pairs, encode_prompt
from densepath.errors import DataError, ModelError

TEXTS = st.sampled_from(
    [
        "blue",
        "it is five",
        "Paris",
        "the  answer\nis green",
        "é 🎉",
        "5",
        "A:",
        " blue",
        "two ",
        "\n\nnew line",
        "x\u2028y",
    ]
)
PLAIN = st.sampled_from(["blue", "it is five", "Paris", "the answer is green", "name a colour please"])
kinds = pytest.mark.parametrize("kind", KINDS)
templates = pytest.mark.parametrize("template", TEMPLATES)
shared = cache(tokenizer_of)
pytestmark = pytest.mark.filterwarnings("ignore:.*assistant turn")


def turns_of(texts: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]


class Rows(list[dict[str, Any]]):
    """As much of a data set as `SFTTrainer._prepare_dataset` asks for, without a cache on disk."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])

    def map(self, function: Any, fn_kwargs: dict[str, Any] | None = None, **_: Any) -> Rows:
        return Rows({**row, **function(dict(row), **(fn_kwargs or {}))} for row in self)


def trl_row(row: dict[str, Any], tokenizer: Any) -> dict[str, list[int]]:
    """What TRL's SFTTrainer makes of a raw row: `input_ids` and `labels`."""
    from trl import SFTTrainer

    trainer = SimpleNamespace(completion_only_loss="prompt" in row, _tokenizer=tokenizer, chat_template=None)
    return SFTTrainer._prepare_dataset(trainer, Rows([row]), tokenizer, trl_arguments(), False, None, "train")[0]


@cache
def trl_arguments() -> Any:
    from trl import SFTConfig

    return SFTConfig(output_dir="unused", max_length=None, use_cpu=True, bf16=False, report_to="none")


def quietly(row: dict[str, Any], tokenizer: Any) -> tuple[list[Encoded], list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return encode_pairs(row, tokenizer), [str(warning.message) for warning in caught]


def assert_trls(ours: list[int], trls: list[int], tokenizer: Any) -> None:
    """Equal up to the last action's EOS; behind it TRL has white space, or the EOS again, or none was rendered."""
    if len(ours) == len(trls) + 1:
        trls = [*trls, tokenizer.eos_token_id]
    assert ours == trls[: len(ours)]
    assert not tokenizer.decode(trls[len(ours) :]).replace(EOS, "").strip()


@kinds
@templates
@settings(max_examples=4, deadline=None)
@given(texts=st.lists(TEXTS, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_messages_have_the_ids_that_trl_trains_on(kind: str, template: str, texts: list[str]) -> None:
    tokenizer = shared(kind, template)
    row = {"messages": turns_of(texts)}
    encoded = encode_demonstration(row, tokenizer)
    assert_trls(encoded["input_ids"], trl_row(row, tokenizer)["input_ids"], tokenizer)
    assert encoded["input_ids"][-1] == tokenizer.eos_token_id
    assert encoded["completion_mask"][-1] == 1


@kinds
@templates
@settings(max_examples=4, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
def test_prompt_and_completion_have_trls_ids_and_mask(kind: str, template: str, prompt: str, completion: str) -> None:
    tokenizer = shared(kind, template)
    turns = turns_of([prompt, completion])
    for row in ({"prompt": turns[:1], "completion": turns[1:]}, {"prompt": prompt, "completion": completion}):
        encoded, trls = encode_demonstration(row, tokenizer), trl_row(row, tokenizer)
        ids, mask = encoded["input_ids"], encoded["completion_mask"]
        assert_trls(ids, trls["input_ids"], tokenizer)
        shown = len(ids) if len(ids) <= len(trls["input_ids"]) else len(ids) - 1
        if tokenizer(text="a")["input_ids"][-1] != tokenizer.eos_token_id:  # else TRL's prompt ends in EOS
            assert mask[:shown] == [int(label != -100) for label in trls["labels"][:shown]]


@kinds
@settings(max_examples=4, deadline=None)
@given(text=TEXTS)
def test_text_has_trls_ids(kind: str, text: str) -> None:
    tokenizer = shared(kind, "chatml")
    assert_trls(
        encode_demonstration({"text": text}, tokenizer)["input_ids"],
        trl_row({"text": text}, tokenizer)["input_ids"],
        tokenizer,
    )


@kinds
@templates
@settings(max_examples=5, deadline=None)
@given(texts=st.lists(TEXTS, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_the_state_of_each_turn_is_the_prompt_that_rl_samples_after(
    kind: str, template: str, texts: list[str]
) -> None:
    tokenizer = shared(kind, template)
    turns = turns_of(texts)
    whole = encode_demonstration({"messages": turns}, tokenizer)
    pairs, said = quietly({"messages": turns}, tokenizer)
    mask = [0] * len(whole["input_ids"])
    for pair in pairs:
        joined = pair.prompt_ids + pair.completion_ids
        assert whole["input_ids"][: len(joined)] == list(joined)
        mask[len(pair.prompt_ids) : len(joined)] = [1] * len(pair.completion_ids)
    assert mask == whole["completion_mask"]
    if not any("also holds the end of the prompt" in line for line in said):
        assert [list(pair.prompt_ids) for pair in pairs] == [
            encode_prompt(turns[:index], tokenizer) for index in range(1, len(turns), 2)
        ]


@kinds
@templates
@settings(max_examples=3, deadline=None)
@given(texts=st.lists(PLAIN, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
def test_no_border_is_crossed_by_ordinary_answers(kind: str, template: str, texts: list[str]) -> None:
    tokenizer = shared(kind, template)
    turns = turns_of(texts)
    pairs, said = quietly({"messages": turns}, tokenizer)
    assert not any("also holds" in line for line in said)
    for pair, index in zip(pairs, range(1, len(turns), 2), strict=True):
        ids, end = list(pair.completion_ids), tokenizer.eos_token_id
        assert ids.count(end) == (1 if template not in ("roles", "last", "replaced") or index == len(turns) - 1 else 0)
        words = tokenizer.decode(ids, skip_special_tokens=True)
        if not kind.startswith("word"):
            assert words.strip().endswith(texts[index])


@kinds
@settings(max_examples=5, deadline=None)
@given(prompt=TEXTS, completion=TEXTS)
def test_special_tokens_stand_once(kind: str, prompt: str, completion: str) -> None:
    """A row that was rendered with the tokenizer's own template has the ids of the same row as turns."""
    tokenizer = shared(kind, "headers")
    turns = turns_of([prompt, completion])
    want = encode_demonstration({"messages": turns}, tokenizer)["input_ids"]
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    asked = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    for row in ({"text": whole + "\n"}, {"prompt": asked, "completion": whole[len(asked) :] + "\n"}):
        assert encode_demonstration(row, tokenizer)["input_ids"] == want
    assert want.count(tokenizer.bos_token_id) == 1
    plain = encode_demonstration({"prompt": prompt, "completion": completion}, tokenizer)["input_ids"]
    opens = tokenizer(text="a")["input_ids"][0] == tokenizer.bos_token_id
    assert (plain.count(tokenizer.bos_token_id), plain.count(tokenizer.eos_token_id)) == (int(opens), 1)
    assert encode_prompt(prompt, tokenizer)[-1] != tokenizer.eos_token_id


def test_a_word_behind_a_colon_is_not_marked_as_the_beginning_of_a_text() -> None:
    tokenizer = shared("metaspace first", "chatml")
    (pair,) = encode_pairs({"prompt": "A:", "completion": "Paris"}, tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(pair.completion_ids)) == [
        *tokenizer.tokenize("A:Paris")[len(tokenizer.tokenize("A:")) :],
        EOS,
    ]


def test_a_template_that_strips_reasoning_is_read_as_it_renders_and_it_is_said() -> None:
    tokenizer = tokenizer_of("byte level", "stripped")
    turns = turns_of(["name a colour", "<think>hm</think>blue", "more", "<think>so</think>green"])
    pairs, said = quietly({"messages": turns}, tokenizer)
    assert [tokenizer.decode(pair.completion_ids) for pair in pairs] == [
        "blue</s>",
        "<think>\nso\n</think>\n\ngreen</s>",
    ]
    assert said == [
        "1 assistant turn: read as the chat template renders it later on, without what it strips (earlier reasoning)"
    ]
    _, counts = encode_demonstrations([{"messages": turns}] * 3, tokenizer)
    assert (counts.rewritten, counts.left_out, counts.merged) == (3, 0, 0)
    assert counts.notes[0].startswith("3 assistant turns")


THOUGHT = "<think>\nit is a colour\n</think>\n\nblue"
"""As a model that reasons says it."""


@pytest.mark.parametrize(
    "turn",
    [
        {"content": THOUGHT},
        {"content": "<think></think>blue"},
        {"content": "it is a colour</think>blue"},
        {"content": "blue", "reasoning_content": "it is a colour"},
    ],
)
def test_an_answer_is_not_trained_inside_a_thought_that_only_the_prompt_opens(turn: dict[str, str]) -> None:
    """The model would learn to answer where it is to think, and its reasoning would be gone."""
    tokenizer = tokenizer_of("byte level")
    tokenizer.chat_template = THINKS
    asked, said = {"role": "user", "content": "name a colour"}, {"role": "assistant", **turn}
    for row in (
        {"prompt": [asked], "completion": [said]},
        {"messages": [asked, {"role": "assistant", "content": "red"}, asked, said]},
    ):
        with pytest.raises(DataError, match=r"drops reasoning of the answer, .* behind the '<think>' that the pr"):
            encode_pairs(row, tokenizer)
    (pair,), notes = quietly({"prompt": [asked], "completion": [turns_of(["", "blue"])[1]]}, tokenizer)
    assert tokenizer.decode(pair.prompt_ids).endswith("assistant\n<think>\n")
    assert [note[:35] for note in notes] == ["1 assistant turn: behind the end of"]
    tokenizer.chat_template = THINKS.replace(".split('</think>')[-1]", "")
    (pair,), notes = quietly({"prompt": [asked], "completion": [turns_of(["", THOUGHT])[1]]}, tokenizer)
    assert tokenizer.decode(pair.completion_ids) == f"{THOUGHT[len('<think>') :].lstrip()}</s>"
    assert notes == []


@pytest.mark.parametrize("end", ["<nothink>", "<think></think>\n", "<think>\n\n</think>\n\n"])
def test_an_answer_behind_a_prompt_that_leaves_no_thought_open_may_lose_its_own(end: str) -> None:
    """It is trained where the model is to answer."""
    tokenizer = tokenizer_of("byte level")
    tokenizer.chat_template = THINKS.replace("<think>\n", end)
    asked, said = turns_of(["name a colour", "it is a colour</think>blue"])
    (pair,), notes = quietly({"prompt": [asked], "completion": [said]}, tokenizer)
    assert tokenizer.decode(pair.prompt_ids).endswith(end)
    assert tokenizer.decode(pair.completion_ids) == "blue</s>"
    assert [note.partition(",")[0][:21] for note in notes] == ["1 assistant turn: beh", "1 assistant turn: wit"]


def test_pairs_of_a_row_that_is_trained_up_to_a_length_are_those_of_the_turns_within_it() -> None:
    tokenizer = tokenizer_of("byte level")
    tokenizer.chat_template = TEMPLATES["chatml"]
    turns = turns_of(["name a colour", "red", "another " * 9, ""])
    turns[-1]["tool_calls"] = [{"type": "function", "function": {"name": "palette", "arguments": {}}}]
    with pytest.raises(DataError, match="leaves out the call of 'palette'"):
        encode_pairs({"messages": turns}, tokenizer)
    limit = 2 + len(encode_demonstration({"messages": turns[:2]}, tokenizer)["input_ids"])
    first = encode_demonstration({"messages": turns}, tokenizer, limit)["completion_mask"]
    (pair,) = encode_pairs({"messages": turns}, tokenizer, limit)
    assert (len(pair.prompt_ids), len(pair.completion_ids)) == (first.index(1), sum(first))


@pytest.mark.parametrize("turn", [{"content": THOUGHT}, {"content": "blue", "reasoning_content": "it is a colour"}])
def test_reasoning_that_the_template_drops_of_every_answer_is_said(turn: dict[str, str]) -> None:
    tokenizer = tokenizer_of("byte level")
    tokenizer.chat_template = THINKS.replace("<think>\n", "")
    question, answer = {"role": "user", "content": "name a colour"}, {"role": "assistant", **turn}
    pairs, said = quietly({"messages": [question, answer, question, answer]}, tokenizer)
    assert [tokenizer.decode(pair.completion_ids).strip() for pair in pairs] == ["blue</s>"] * 2
    assert said == [
        "2 assistant turns: without text or reasoning that the chat template drops; another chat_template_path may "
        "keep it"
    ]
    _, counts = encode_demonstrations([{"messages": [question, answer]}] * 3, tokenizer)
    assert counts.shortened == 3
    assert counts.notes[0].startswith("3 assistant turns: without")


def test_reasoning_beside_a_call_that_the_answer_drops_may_be_left_out() -> None:
    """gpt-oss: where an answer follows, nothing of what was thought before the calls stands before it."""
    tokenizer = tokenizer_of("byte level")
    tokenizer.chat_template = (
        "{% set last = messages[-1] %}{% for m in messages %}<|turn|>{{ m['role'] }}\n"
        "{% if last['role'] != 'assistant' or last.get('tool_calls') %}{{ m['thinking'] }}{% endif %}"
        "{{ m['content'] }}{% for call in m['tool_calls'] %}{{ call['function']['name'] }}{% endfor %}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
    )
    call = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}
    rest = [{"role": "tool", "content": "five"}, {"role": "assistant", "content": "it is five"}]
    with pytest.raises(
        ModelError, match=r"leave out what it drops of the turns before \(reasoning beside tool_calls\)"
    ):
        encode_pairs({"messages": [*turns_of(["what is two"]), {**call, "thinking": "a sum"}, *rest]}, tokenizer)
    pairs, said = quietly({"messages": [*turns_of(["what is two"]), call, *rest]}, tokenizer)
    assert [tokenizer.decode(pair.completion_ids) for pair in pairs] == ["add</s>", "it is five</s>"]
    assert said == []


MARKED_LAST = LAST.replace(
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}<|turn|>\n{% endfor %}",
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|turn|>\n{% endgeneration %}{% else %}{{ m['content'] }}<|turn|>\n{% endif %}{% endfor %}",
).replace("{{ eos_token }}", "{% generation %}{{ eos_token }}{% endgeneration %}")
MARKED_REPLACED = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% if loop.last %}{{ eos_token }}{% else %}<|turn|>{% endif %}{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|turn|>{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "marked", "ends"),
    [("last", MARKED_LAST, ("<|turn|>\n", "<|turn|>\n</s>")), ("replaced", MARKED_REPLACED, ("<|turn|>", "</s>"))],
)
def test_an_eos_behind_the_last_turn_alone_leaves_the_others_actions(
    template: str, marked: str, ends: tuple[str, str]
) -> None:
    """As TRL's training templates of Phi-3 and gpt-oss mark them: with the token that ends the turn, and the line."""
    tokenizer = tokenizer_of("byte level", template)
    row = {"messages": turns_of(["name a colour please", "blue", "what is two", "five"])}
    options = {"return_dict": True, "return_assistant_tokens_mask": True}
    found = tokenizer.apply_chat_template(row["messages"], chat_template=marked, **options)
    encoded = encode_demonstration(row, tokenizer)
    assert encoded["input_ids"] == found["input_ids"]
    assert encoded["completion_mask"] == found["assistant_masks"]
    pairs, said = quietly(row, tokenizer)
    assert [tokenizer.decode(pair.completion_ids) for pair in pairs] == [f"blue{ends[0]}", f"five{ends[1]}"]
    assert said == []


def test_a_special_token_that_begins_the_next_turn_ends_no_action() -> None:
    tokenizer = tokenizer_of("byte level")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|turn|>' if m['role'] == 'assistant' else '<unk>' }}{{ m['content'] }}"
        "{% if loop.last and m['role'] == 'assistant' and not add_generation_prompt %}{{ eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|turn|>{% endif %}"
    )
    pairs, _ = quietly({"messages": turns_of(["name a colour please", "blue", "what is two", "five"])}, tokenizer)
    assert [tokenizer.decode(pair.completion_ids) for pair in pairs] == ["blue", "five</s>"]


def test_an_action_ends_at_the_first_of_two_eos_between_which_there_is_nothing() -> None:
    """Sampling stops there: no completion holds what stands behind it."""
    tokenizer = tokenizer_of("byte level", "twice")
    pairs, said = quietly({"messages": turns_of(["name a colour please", "blue", "what is two", "five"])}, tokenizer)
    assert [tokenizer.decode(pair.completion_ids) for pair in pairs] == ["blue</s>", "five</s>"]
    assert said == []


def test_a_turn_whose_state_is_never_asked_for_again_is_no_action() -> None:
    """Between a call and its result the reasoning stands; once the next question is asked, it does not."""
    tokenizer = tokenizer_of("byte level", "stripped")
    turns = [
        {"role": "user", "content": "what is two"},
        {"role": "assistant", "content": "<think>call</think>x"},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "it is two"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "five"},
    ]
    pairs, said = quietly({"messages": turns}, tokenizer)
    assert [list(pair.prompt_ids) for pair in pairs] == [encode_prompt(turns[:k], tokenizer) for k in (1, 5)]
    assert any("no actions" in line and line.startswith("1 ") for line in said)


def test_a_border_that_a_token_crosses_is_trls_and_is_said() -> None:
    tokenizer = shared("byte level", "chatml")
    row = {"prompt": "what is ", "completion": "two"}
    pairs, said = quietly(row, tokenizer)
    trls = trl_row(row, tokenizer)
    assert list(pairs[0].prompt_ids + pairs[0].completion_ids) == trls["input_ids"]
    assert trls["labels"].count(-100) == len(pairs[0].prompt_ids)
    assert ["also holds the end of the prompt" in line for line in said] == [True]


def test_template_arguments_of_the_tokenizer_of_the_call_and_of_the_row() -> None:
    tokenizer = tokenizer_of("byte level", "stripped")
    turns = turns_of(["more", "blue"])
    thought = "<think>\n\n</think>\n\n"
    assert not tokenizer.decode(encode_prompt(turns[:1], tokenizer)).endswith(thought)
    assert tokenizer.decode(encode_prompt(turns[:1], tokenizer, {"enable_thinking": False})).endswith(thought)
    tokenizer.init_kwargs["chat_template_kwargs"] = {"enable_thinking": False}
    assert tokenizer.decode(encode_prompt(turns[:1], tokenizer)).endswith(thought)
    assert not tokenizer.decode(encode_prompt(turns[:1], tokenizer, {"enable_thinking": True})).endswith(thought)
    row = {"messages": turns, "chat_template_kwargs": {"enable_thinking": True}}
    (pair,) = encode_pairs(row, tokenizer, chat_template_kwargs={"enable_thinking": False})
    assert tokenizer.decode(pair.completion_ids) == thought + "blue</s>"


def test_an_eos_that_stands_between_turns_ends_the_turn_before() -> None:
    tokenizer = tokenizer_of("byte level")
    tokenizer.chat_template = (
        "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] }}{% if not loop.last %}</s>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}</s>\n<|turn|>assistant\n{% endif %}"
    )
    pairs = encode_pairs({"messages": turns_of(["name a colour", "blue", "more", "five"])}, tokenizer)
    assert [tokenizer.decode(pair.completion_ids) for pair in pairs] == ["blue</s>", "five</s>"]


@pytest.mark.parametrize("split", [False, True])
def test_an_eos_that_the_tokenizer_does_not_read_is_named(split: bool) -> None:
    tokenizer = tokenizer_of("byte level")
    if split:
        tokenizer.split_special_tokens = True
    else:
        tokenizer.add_special_tokens({"eos_token": AddedToken("<end>", single_word=True, special=True)})
        tokenizer.chat_template = TEMPLATES["chatml"].replace(EOS, "<end>")
    row = {"messages": turns_of(["5.", "blue"])}
    with pytest.raises(ModelError, match="as other text"):
        encode_demonstration(row, tokenizer)


def test_bos_is_in_these_tokenizers() -> None:
    """The kinds are what their names say."""
    for kind in KINDS:
        ids = tokenizer_of(kind)(text="blue")["input_ids"]
        tokens = tokenizer_of(kind).convert_ids_to_tokens(ids)
        assert (tokens[0] == BOS, tokens[-1] == EOS) == (
            "BOS" in kind or kind == "unigram",
            "EOS" in kind or kind == "unigram",
        )
