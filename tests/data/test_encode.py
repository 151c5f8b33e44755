from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import CHATML, IM_END, tiny_tokenizer

from densepath.data.encode import (
    Encoded,
    encode_demonstration,
    encode_demonstrations,
    encode_pair,
    encode_pairs,
    encode_prompt,
)
from densepath.data.rows import split_turns
from densepath.data.tasks import generate_tasks
from densepath.errors import ConfigError, DataError, ModelError

TOKENIZER = tiny_tokenizer()
EOS = TOKENIZER.eos_token_id
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and "<|" not in text
)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def kept(encoded: dict[str, list[int]]) -> list[int]:
    return [token for token, bit in zip(encoded["input_ids"], encoded["completion_mask"], strict=True) if bit]


# --- TRL sees the same ids -----------------------------------------------------------------------------------------


def trl_prompt_ids(prompts: list[Any], tokenizer: Any, **chat_template_kwargs: Any) -> list[list[int]]:
    from trl import GRPOTrainer

    trainer = SimpleNamespace(
        processing_class=tokenizer,
        _is_vlm=False,
        environment_factories=None,
        tools=None,
        chat_template=None,
        chat_template_kwargs=chat_template_kwargs,
    )
    return GRPOTrainer._tokenize_prompts(trainer, prompts)[0]


def with_bos(tokenizer: Any) -> Any:
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", ids_of("<|im_start|>", tokenizer)[0])]
    )
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [TOKENIZER, tiny_tokenizer(pad_is_eos=False), tiny_tokenizer(byte_level=False), with_bos(tiny_tokenizer())],
    ids=["pad is eos", "pad apart", "words", "adds bos"],
)
@pytest.mark.parametrize("pad_side", ["left", "right"])
def test_prompt_ids_equal_trls(tokenizer: Any, pad_side: str) -> None:
    tokenizer.padding_side = pad_side
    texts = ["the answer", "  what is\n\nthe question? ", "é 🎉\u2028x"]
    conversations = [
        [user("the answer")],
        [{"role": "system", "content": "Reply."}, user("what?")],
        [user("a"), assistant("b"), user("c")],
        [user("a"), {"role": "tool", "content": "4"}],
    ]
    for prompts in (texts, conversations):
        assert [encode_prompt(prompt, tokenizer) for prompt in prompts] == trl_prompt_ids(prompts, tokenizer)


def test_prompt_ids_equal_trls_with_template_arguments() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML + "{% if think is defined and not think %}no{% endif %}"
    prompts = [[user("the answer")]]
    plain, closed = encode_prompt(prompts[0], tokenizer), encode_prompt(prompts[0], tokenizer, {"think": False})
    assert closed == trl_prompt_ids(prompts, tokenizer, think=False)[0] == plain + ids_of("no")


def test_labels_of_trl_are_exactly_the_actions_eos_included_when_pad_is_eos(tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    assert TOKENIZER.pad_token_id == EOS
    rows = [
        {"messages": [user("what?"), assistant("the answer"), user("b"), assistant("two")]},
        {"prompt": [user("how many words are in this list?")], "completion": [assistant("3")]},
    ]
    table, _ = encode_demonstrations(rows, TOKENIZER)
    before = table.to_list()
    args = SFTConfig(output_dir=str(tmp_path), shuffle_dataset=False, use_cpu=True, bf16=False, report_to="none")
    trainer = SimpleNamespace(completion_only_loss=True, _tokenizer=TOKENIZER)
    prepared = SFTTrainer._prepare_dataset(trainer, table, TOKENIZER, args, False, None, "train")
    batch = DataCollatorForLanguageModeling(pad_token_id=EOS)([prepared[0], prepared[1]])
    longest = max(len(row["input_ids"]) for row in before)
    for i, row in enumerate(before):
        ids, mask = row["input_ids"], row["completion_mask"]
        padding = longest - len(ids)
        assert batch["input_ids"][i].tolist() == ids + [EOS] * padding
        assert batch["attention_mask"][i].tolist() == [1] * len(ids) + [0] * padding
        expected = [token if bit else -100 for token, bit in zip(ids, mask, strict=True)] + [-100] * padding
        assert batch["labels"][i].tolist() == expected
    assert (batch["labels"] == EOS).sum(dim=1).tolist() == [2, 1]  # one EOS per assistant turn


# --- formats, by hand ----------------------------------------------------------------------------------------------


def test_prompt_and_completion_of_turns() -> None:
    row = {"prompt": [user("what?")], "completion": [assistant("the answer")]}
    prompt = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nwhat?<|im_end|>\n<|im_start|>assistant\n"
    encoded = encode_demonstration(row, TOKENIZER)
    state, action = ids_of(prompt), [*ids_of("the answer"), EOS]  # and no "\n" behind EOS
    assert encoded["input_ids"] == state + action
    assert encoded["completion_mask"] == [0] * len(state) + [1] * len(action)


@pytest.mark.filterwarnings("ignore:.*also holds the end of the prompt")
def test_prompt_and_completion_of_text_are_tokenised_together() -> None:
    row = {"prompt": "the ans", "completion": "wer"}
    encoded = encode_demonstration(row, TOKENIZER)
    assert encoded["input_ids"] == [*ids_of("the answer"), EOS]
    shared = next(i for i, (a, b) in enumerate(zip(ids_of("the ans"), ids_of("the answer"), strict=False)) if a != b)
    assert kept(encoded) == [*ids_of("the answer")[shared:], EOS]  # from the token that holds the border


def test_a_newline_at_the_border_begins_the_action_where_it_merges_and_it_is_said() -> None:
    row = {"prompt": [user("what?")], "completion": [assistant("\n\n three")]}
    together = ids_of(TOKENIZER.apply_chat_template([*row["prompt"], *row["completion"]], tokenize=False))
    with pytest.warns(UserWarning, match="also holds the end of the prompt"):
        encoded = encode_demonstration(row, TOKENIZER)
    prompt = encode_prompt(row["prompt"], TOKENIZER)
    assert together[: len(prompt)] != prompt  # the border does merge with this tokenizer
    assert encoded["input_ids"] == together[: len(encoded["input_ids"])]
    assert encoded["completion_mask"].index(1) == len(prompt) - 1


def test_text_is_action_throughout_and_ends_in_one_eos() -> None:
    for text in ("the answer", f"the answer{IM_END}"):
        encoded = encode_demonstration({"text": text}, TOKENIZER)
        assert encoded["input_ids"] == [*ids_of("the answer"), EOS]
        assert encoded["completion_mask"] == [1] * len(encoded["input_ids"])


def test_of_messages_every_assistant_turn_is_action_and_the_rest_is_state() -> None:
    turns = [
        user("a"),
        assistant("the answer"),
        {"role": "tool", "content": "4"},
        assistant("two"),
        user("unanswered"),
    ]
    encoded = encode_demonstration({"messages": turns}, TOKENIZER)
    head = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    between = "\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n"
    expected = [(0, ids_of(head)), (1, [*ids_of("the answer"), EOS]), (0, ids_of(between)), (1, [*ids_of("two"), EOS])]
    assert encoded["input_ids"] == [token for _, ids in expected for token in ids]
    assert encoded["completion_mask"] == [bit for bit, ids in expected for _ in ids]


def test_assistant_turns_of_the_prompt_are_state() -> None:
    row = {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]}
    encoded = encode_demonstration(row, TOKENIZER)
    prompt = encode_prompt(row["prompt"], TOKENIZER)
    assert encoded["input_ids"] == [*prompt, *ids_of("d"), EOS]
    assert sum(encoded["completion_mask"]) == 2


def test_nulls_that_arrow_adds_to_turns_do_not_reach_the_template() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML.replace(
        "message['content']", "message['content'] + ('!' if 'name' in message else '')"
    )
    named = {"role": "user", "content": "a", "name": "Ann"}
    rows = [
        {"prompt": [user("a")], "completion": [assistant("b")]},
        {"prompt": [named], "completion": [assistant("b")]},
    ]
    table = datasets.Dataset.from_list(rows)
    assert table[0]["prompt"][0]["name"] is None
    for plain, stored in zip(rows, table, strict=True):
        assert encode_demonstration(stored, tokenizer) == encode_demonstration(plain, tokenizer)


# --- the three users of the ids agree ------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3))
def test_sft_scoring_and_rl_see_the_same_ids(exchanges: list[tuple[str, str]]) -> None:
    turns = [turn for question, reply in exchanges for turn in (user(question), assistant(reply))]
    row = {"messages": turns}
    encoded = encode_demonstration(row, TOKENIZER)
    pairs = encode_pairs(row, TOKENIZER)
    assert len(pairs) == len(exchanges)
    for pair in pairs:  # scoring sees slices of what SFT sees
        whole = pair.prompt_ids + pair.completion_ids
        assert encoded["input_ids"][: len(whole)] == list(whole)
        assert pair.completion_ids[-1] == EOS
    assert kept(encoded) == [token for pair in pairs for token in pair.completion_ids]
    first = {"prompt": turns[:1], "completion": turns[1:2]}
    assert list(pairs[0].prompt_ids) == encode_prompt(turns[:1], TOKENIZER)  # RL samples after the same prompt
    assert encode_pairs(first, TOKENIZER) == pairs[:1] == [encode_pair(turns[:1], turns[1:2], TOKENIZER)]
    assert [TOKENIZER.decode(pair.completion_ids) for pair in pairs] == [reply + IM_END for _, reply in exchanges]


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS)
def test_text_rows_agree_too(prompt: str, completion: str) -> None:
    row = {"prompt": prompt, "completion": completion}
    (pair,) = encode_pairs(row, TOKENIZER)
    assert pair == encode_pair(prompt, completion, TOKENIZER)
    assert TOKENIZER.decode(pair.prompt_ids + pair.completion_ids) == prompt + completion + IM_END
    assert encode_demonstration(row, TOKENIZER)["input_ids"] == [*pair.prompt_ids, *pair.completion_ids]


def test_of_a_text_row_the_first_token_is_the_prompt() -> None:
    (pair,) = encode_pairs({"text": "the answer"}, TOKENIZER)
    ids = ids_of("the answer")
    assert pair == Encoded(tuple(ids[:1]), (*ids[1:], EOS))


def test_encoded_refuses_an_empty_side_with_both_numbers() -> None:
    with pytest.raises(DataError, match="prompt has 0 tokens and the completion 2"):
        Encoded((), (1, 2))
    with pytest.raises(DataError, match="prompt has 1 tokens and the completion 0"):
        Encoded((1,), ())
    assert Encoded([1], [2]).prompt_ids == (1,)  # type: ignore[arg-type]


# --- truncation ----------------------------------------------------------------------------------------------------


def test_truncation_keeps_the_prompt_and_cuts_the_completions_end() -> None:
    row = {"prompt": [user("what?")], "completion": [assistant("the answer is one two three")]}
    whole = encode_demonstration(row, TOKENIZER)
    size, state = len(whole["input_ids"]), whole["completion_mask"].index(1)
    assert encode_demonstration(row, TOKENIZER, size) == whole
    for length in range(state + 1, size):
        cut = encode_demonstration(row, TOKENIZER, length)
        assert cut == {"input_ids": whole["input_ids"][:length], "completion_mask": whole["completion_mask"][:length]}
        assert EOS not in kept(cut)
    with pytest.raises(DataError, match=rf"prompt has {state} tokens and max_length is {state}, .*drop_overlong"):
        encode_demonstration(row, TOKENIZER, state)
    with pytest.raises(ConfigError, match="max_length is 1"):
        encode_demonstration(row, TOKENIZER, 1)


def test_overlong_rows_are_named_or_dropped_and_counted() -> None:
    rows = [
        {"prompt": "(", "completion": "b"},  # 1 + 2 tokens
        {"prompt": "(", "completion": "bcxyz"},  # 1 + 6: cut to 4
        {"prompt": "((((", "completion": "b"},  # the prompt alone fills it exactly
        {"prompt": "(", "completion": "xz"},  # 1 + 3: fits exactly
    ]
    with pytest.raises(DataError, match=r"^lessons.jsonl, row 3: the prompt has 4 tokens and max_length is 4"):
        encode_demonstrations(rows, TOKENIZER, 4, source="lessons.jsonl")
    table, counts = encode_demonstrations(rows, TOKENIZER, 4, drop_overlong=True)
    assert table["completion_mask"] == [[0, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]
    assert (counts.rows, counts.dropped, counts.truncated) == (4, 1, 1)
    assert (counts.state_tokens, counts.action_tokens) == (3, 8)
    assert table.column_names == ["input_ids", "completion_mask"]
    with pytest.raises(DataError, match="no row is left of 1"):
        encode_demonstrations(rows[2:3], TOKENIZER, 4, drop_overlong=True)


def test_errors_of_a_row_carry_its_number() -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": "a"}]
    with pytest.raises(DataError, match=r"^the data set, row 2: a prompt without"):
        encode_demonstrations(rows, TOKENIZER)


def test_generated_tasks_encode_with_either_tokenizer() -> None:
    rows = generate_tasks(12, seed=0)
    for tokenizer in (TOKENIZER, tiny_tokenizer(pad_is_eos=False, byte_level=False)):
        table, counts = encode_demonstrations(rows, tokenizer)
        assert counts.rows == len(table) == 12
        assert all(kept(row)[-1] == tokenizer.eos_token_id for row in table)


# --- tokenizers and templates that do not serve --------------------------------------------------------------------


def test_a_conversation_without_template_is_refused_and_text_is_not() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    row = {"prompt": [user("a")], "completion": [assistant("b")]}
    for encode in (encode_demonstration, encode_pairs):
        with pytest.raises(ModelError, match=r"no chat template; give one with chat_template_path"):
            encode(row, tokenizer)
    assert encode_demonstration({"prompt": "a", "completion": "b"}, tokenizer)["input_ids"]


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"set tokenizer.eos_token"):
        encode_demonstration({"prompt": "a", "completion": "b"}, tokenizer)


def test_a_template_that_raises_is_quoted() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(DataError, match=r"refuses these turns \(System role not supported\)"):
        encode_prompt([user("a")], tokenizer)


@pytest.mark.filterwarnings("ignore:.*are no actions")
@pytest.mark.parametrize("answer", ["b", "<b"])
def test_an_end_of_the_prompt_that_the_template_drops_later_stays_before_the_answer(answer: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML.replace("assistant\n' }}{% endif", "assistant\n<nothink>' }}{% endif")
    turns = [user("a"), assistant("x"), user("c"), assistant(answer)]
    with pytest.warns(UserWarning, match=r"^1 assistant turn: behind the end of the prompt"):
        (pair,) = encode_pairs({"messages": turns}, tokenizer)
    assert list(pair.prompt_ids) == encode_prompt(turns[:3], tokenizer)
    assert tokenizer.decode(pair.prompt_ids).endswith("assistant\n<nothink>")
    assert tokenizer.decode(pair.completion_ids) == answer + IM_END  # the first answer's state is not asked for again


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if add_generation_prompt %}ask{% endif %}" + CHATML
    with pytest.raises(ModelError, match=r"in the prompt and .*once the completion follows"):
        encode_demonstration({"prompt": [user("a")], "completion": [assistant("b")]}, tokenizer)


@pytest.mark.filterwarnings("ignore:.*without what it strips")
def test_a_template_that_rewrites_earlier_turns_is_read_as_it_renders_and_split_turns_keeps_all() -> None:
    tokenizer = tiny_tokenizer()
    shown = "(message['content'] if loop.last else message['content'].split('#')[-1])"  # earlier reasoning stripped
    tokenizer.chat_template = CHATML.replace("message['content']", shown)
    row = {"messages": [user("a"), assistant("why#b"), user("c"), assistant("why#d")]}
    assert kept(encode_demonstration(row, tokenizer)) == [*ids_of("b"), EOS, *ids_of("why#d"), EOS]
    actions = [kept(encode_demonstration(part, tokenizer)) for part in split_turns(row)]
    assert actions == [[*ids_of("why#b"), EOS], [*ids_of("why#d"), EOS]]


PRINTED = (  # Llama 3, Gemma: of a turn its content alone
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    "turn",
    [{"tool_calls": [CALL]}, {"content": "so:", "tool_calls": [CALL]}, {"tool_calls": [CALL["function"]]}],
    ids=["a call", "text and a call", "a call without its type"],
)
def test_a_call_that_the_template_leaves_out_is_refused_and_no_action_of_eos_alone(turn: dict[str, Any]) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PRINTED
    called = {"role": "assistant", **turn}
    rows = [
        {"messages": [user("please add 1"), called], "tools": [CALL]},
        {"messages": [user("please add 1"), called, user("and?"), assistant("so:1")]},
    ]
    for row in rows:
        with pytest.raises(DataError, match=r"the chat template leaves out the call of 'add'.* or leave the row out"):
            encode_demonstration(row, tokenizer)
    asked = {"prompt": rows[1]["messages"][:3], "completion": rows[1]["messages"][3:]}
    assert kept(encode_demonstration(asked, tokenizer)) == [*ids_of("so:1"), EOS]  # no call is imitated
    shown = "{% for c in m.tool_calls or () %}{{ (c.function or c).name ~ (c.function or c).arguments }}{% endfor %}"
    tokenizer.chat_template = PRINTED.replace("<|im_end|>", shown + "<|im_end|>")
    text = f"{turn.get('content', '')}add{{'a': 1}}"
    assert kept(encode_demonstration(rows[0], tokenizer)) == [*ids_of(text), EOS]


def test_turns_beyond_max_length_are_not_looked_at() -> None:
    """Each costs as much as all before it."""
    row = {"messages": [turn for i in range(50) for turn in (user("what?"), assistant(f"it is {i}"))]}
    whole, asked = encode_demonstration(row, TOKENIZER), []
    tokenizer = tiny_tokenizer()
    render = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda turns, **given: asked.append(len(turns)) or render(turns, **given)
    cut = encode_demonstration(row, tokenizer, 100)
    assert cut == {"input_ids": whole["input_ids"][:100], "completion_mask": whole["completion_mask"][:100]}
    assert sum(2 < count < 90 for count in asked) < 20


def test_a_template_without_eos_gets_one_appended() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    encoded = encode_demonstration({"prompt": [user("a")], "completion": [assistant("b")]}, tokenizer)
    assert kept(encoded) == [*ids_of("b\n"), EOS]


def test_a_template_that_ends_turns_in_another_token_than_eos_is_refused() -> None:
    tokenizer = tiny_tokenizer(pad_is_eos=False)
    tokenizer.eos_token = tokenizer.pad_token
    with pytest.raises(
        ModelError,
        match=r"ends assistant turns with '<\|im_end\|>'.*set eos_token to .* or leave out rows that end so",
    ):
        encode_demonstration({"prompt": [user("a")], "completion": [assistant("b")]}, tokenizer)


def test_an_eos_inside_the_content_is_not_taken_for_the_end() -> None:
    encoded = encode_demonstration({"prompt": "a", "completion": f"x{IM_END}y"}, TOKENIZER)
    assert kept(encoded) == [*ids_of("x"), EOS, *ids_of("y"), EOS]


def test_a_pair_is_one_prompt_and_one_answer() -> None:
    with pytest.raises(DataError, match="differ in kind"):
        encode_pair("a", [assistant("b")], TOKENIZER)
    with pytest.raises(DataError, match="2 turns, not one; use encode_pairs"):
        encode_pair([user("a")], [assistant("b"), assistant("c")], TOKENIZER)
    with pytest.raises(DataError, match="no assistant turn"):
        encode_pair([user("a")], [user("b")], TOKENIZER)
