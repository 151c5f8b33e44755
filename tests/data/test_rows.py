"""The normal form of a row's turns: the same from JSON, from Arrow and from memory, and what is asked by it."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support import tiny_tokenizer

from densepath.data.encode import encode_demonstration
from densepath.data.formats import dataset_fingerprint, validate_rows
from densepath.data.rows import (
    DataFormat,
    conversation_of,
    normal_turns,
    prompt_of,
    split_turns,
    template_arguments,
    turn_text,
)
from densepath.data.splits import content_hash
from densepath.data.training_rows import demonstration_pairs, measured_rows
from densepath.errors import DataError

USER = {"role": "user", "content": "Weather in Lima?"}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"c": 1}}}]}
RESULT = {"role": "tool", "name": "w", "content": "sunny"}
ANSWER = {"role": "assistant", "content": "Sunny."}

NAMES = st.sampled_from(["city", "unit", "when", "a"])
# Values of one type for each name: Arrow has one type for each field. An argument is absent or has a value.
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "city": st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        "days": st.integers(-(2**40), 2**40),
        "exact": st.booleans(),
        "span": st.lists(st.none() | st.integers(0, 9), max_size=3),
        "place": st.fixed_dictionaries({}, optional={"lat": st.floats(-90, 90), "name": st.text("ab", max_size=2)}),
    },
)
CALLS = st.lists(
    st.fixed_dictionaries({"name": NAMES, "arguments": ARGUMENTS}).map(lambda f: {"type": "function", "function": f}),
    min_size=1,
    max_size=2,
)
CALLING = st.fixed_dictionaries(
    {"role": st.just("assistant"), "tool_calls": CALLS},
    optional={"content": st.text("xy ", max_size=3), "reasoning_content": st.text("z", max_size=2)},
)
TOOLS = st.lists(
    st.dictionaries(NAMES, st.sampled_from(["string", "integer"]), max_size=3).map(
        lambda given: {
            "name": "f",
            "parameters": {"properties": {name: {"type": kind} for name, kind in given.items()}},
        }
    ),
    max_size=2,
)
TOOL_ROWS = st.fixed_dictionaries(
    {"messages": CALLING.map(lambda turn: [USER, turn, RESULT, ANSWER])},
    optional={
        "tools": TOOLS,
        "chat_template_kwargs": st.fixed_dictionaries({}, optional={"enable_thinking": st.booleans()}),
    },
)


@settings(max_examples=60)
@given(st.lists(TOOL_ROWS, min_size=1, max_size=4))
def test_rows_that_went_through_arrow_are_the_rows_that_went_in(rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: pa.array([row.get(name) for row in rows]) for name in names}).to_pylist()
    for row, back in zip(rows, table, strict=True):
        assert normal_turns(back["messages"]) == row["messages"]
        tools = {"tools": row["tools"]} if row.get("tools") else {}
        expected = {**tools, **row.get("chat_template_kwargs", {})}
        assert template_arguments(back) == expected
        assert content_hash(back) == content_hash(row)
        assert json.dumps(conversation_of(back)[0], sort_keys=True) == json.dumps(row["messages"], sort_keys=True)


def test_nulls_of_other_rows_never_reach_what_is_rendered() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
        "{% if m['tool_calls'] %}{{ m['tool_calls'] | tojson }}{% endif %}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    other = {**CALL, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"b": "x"}}}]}
    rows = [{"messages": [USER, CALL, RESULT, ANSWER]}, {"messages": [USER, other]}]
    for row, back in zip(rows, pa.Table.from_pylist(rows).to_pylist(), strict=True):
        assert back["messages"] != row["messages"]
        assert encode_demonstration(back, tokenizer) == encode_demonstration(row, tokenizer)


def test_a_call_needs_no_content_and_any_template_can_look_for_it() -> None:
    import jinja2

    template = jinja2.Template(
        "{{ m['content'] }}|{{ m.content is defined }}|{{ m.content is none }}|{{ m.content is string }}"
    )
    for turn in (CALL, {**CALL, "content": None}):
        assert normal_turns([turn]) == [CALL]
        assert template.render(m=normal_turns([turn])[0]) == "|False|False|False"
    for content in (None, "", " ", []):
        row = {"messages": [USER, {**CALL, "content": content}, RESULT, ANSWER]}
        validate_rows([row], "demonstrations")
        assert turn_text(normal_turns(row["messages"])[1]).strip() == ""
    validate_rows([{"prompt": [USER], "completion": [CALL]}], "demonstrations")


def test_no_calls_are_no_calls() -> None:
    """As data sets write that say of every turn what it calls; templates ask whether the key is there."""
    turns = [USER, {**ANSWER, "tool_calls": []}]
    assert normal_turns(turns) == [USER, ANSWER]
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}{% if m.tool_calls is defined %}{{ m.tool_calls }}{% else %}"
        "{{ m.content }}{% endif %}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    given, plain = ({"prompt": [*part, USER], "completion": part[1:]} for part in (turns, [USER, ANSWER]))
    assert encode_demonstration(given, tokenizer) == encode_demonstration(plain, tokenizer)
    assert content_hash(given) == content_hash(plain)


def test_text_parts_are_joined_and_other_keys_of_a_turn_kept() -> None:
    parts = [{"type": "text", "text": "Weather ", "image": None}, {"type": "text", "text": "in Lima?"}]
    row = {"messages": [{"role": "user", "content": parts}, {**ANSWER, "reasoning_content": "Hm", "thinking": None}]}
    validate_rows([row], "demonstrations")
    assert conversation_of(row)[0] == [USER, {**ANSWER, "reasoning_content": "Hm"}]
    assert prompt_of(row) == [USER]
    assert content_hash(row) == content_hash({"prompt": USER["content"]})


def test_arguments_that_are_a_json_string_stay_one() -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": null}'}}]}
    assert normal_turns([call]) == [call]


@pytest.mark.parametrize("tools", [None, "", " ", "[]", "null", []])
def test_no_tools_are_no_argument(tools: Any) -> None:
    assert template_arguments({"messages": [USER], "tools": tools}) == {}
    for text in ({"prompt": "Hang it.", "completion": "Done."}, {"prompt": None, "text": "Done."}):
        assert template_arguments({**text, "tools": "hammer, saw", "chat_template_kwargs": 5}) == {}
    asked = {"prompt": "Hi", "messages": [USER], "chat_template_kwargs": {"a": 1}}
    assert template_arguments(asked) == {"a": 1}


def test_tools_may_be_json_text_and_kwargs_count_first() -> None:
    schema = {"type": "function", "function": {"name": "f"}}
    assert template_arguments({"tools": json.dumps([schema])}) == {"tools": [schema]}
    given = {"tools": [], "documents": [{}]}
    assert template_arguments({"tools": [schema], "chat_template_kwargs": given}) == {"documents": [{}]}
    # Plain text has no template, so its columns of that name are nobody's.
    validate_rows([{"prompt": "a", "completion": "b", "tools": "hammer", "chat_template_kwargs": 3}], "demonstrations")


# --- what is asked -------------------------------------------------------------------------------------------------

SYSTEM = {"role": "system", "content": "Be kind."}
AGAIN = {"role": "user", "content": "And tomorrow?"}


@pytest.mark.parametrize(
    ("turns", "asked"),
    [
        ([USER, ANSWER], 1),
        ([USER, ANSWER, AGAIN], 3),
        ([USER, CALL, RESULT], 3),
        ([USER, CALL], 1),
        ([USER, ANSWER, ANSWER], 2),
        ([SYSTEM, ANSWER], 1),
        ([SYSTEM], 1),
        ([ANSWER, USER], 2),
        ([USER], 1),
    ],
)
def test_messages_ask_for_the_turn_that_comes_next_or_last(turns: list[dict[str, Any]], asked: int) -> None:
    row = {"messages": turns}
    validate_rows([row], "prompts")
    assert prompt_of(row) == turns[:asked]
    assert content_hash(row) == content_hash({"prompt": turns[:asked]})


def test_a_prompt_beside_a_text_is_what_is_asked_and_the_text_what_is_imitated() -> None:
    row = {"prompt": [USER], "text": "Below. Sunny."}
    assert prompt_of(row) == [USER]
    assert content_hash(row) == content_hash({"messages": [USER, ANSWER]})
    assert validate_rows([row, {"prompt": [USER]}], "prompts") is DataFormat.PROMPT
    assert validate_rows([row, {"text": "a"}], "demonstrations") is DataFormat.TEXT


def test_what_ends_with_the_user_is_imitated_where_the_assistant_speaks_and_asked_at_its_end() -> None:
    row = {"messages": [USER, ANSWER, AGAIN]}
    validate_rows([row], "demonstrations")
    assert [part["completion"] for part in split_turns(row)] == [[ANSWER]]
    tokenizer = tiny_tokenizer()
    ids = encode_demonstration(row, tokenizer)
    assert ids == encode_demonstration({"messages": [USER, ANSWER]}, tokenizer)
    (pair,) = demonstration_pairs([row], tokenizer, 10_000)
    assert pair["prompt"] == [USER, ANSWER, AGAIN]
    assert pair["completion"] is None


def test_a_turn_that_was_begun_is_refused_but_may_stand_before_a_completion() -> None:
    with pytest.raises(DataError, match=r"row 1: the prompt ends with an assistant turn.*completion"):
        validate_rows([{"prompt": [USER, ANSWER]}], "prompts")
    validate_rows([{"prompt": [USER, ANSWER], "completion": [ANSWER]}], "prompts")


def test_calls_tell_prompts_apart_and_tools_do_not() -> None:
    one, other = [USER, CALL, RESULT], [USER, {**CALL, "tool_calls": [{"function": {"name": "x"}}]}, RESULT]
    assert content_hash({"prompt": one}) != content_hash({"prompt": other})
    assert content_hash({"prompt": one}) == content_hash({"prompt": one, "tools": [{"name": "w"}]})
    assert dataset_fingerprint([{"prompt": one}]) != dataset_fingerprint([{"prompt": one, "tools": [{"name": "w"}]}])


@pytest.mark.parametrize("long", [{"completion": "red " * 60}, {"text": "Say it. " + "red " * 60}])
def test_of_rows_longer_than_the_context_the_prompts_are_left_where_answers_are_judged(long):
    rows = [
        {"prompt": "Say it.", "completion": "red"},
        {"prompt": "Say it. ", "answer": "r", **long},
        {"prompt": "Go."},
    ]
    assert measured_rows(rows, tiny_tokenizer(), 40, judged=False) == [rows[0], rows[2]]
    asked = [{"prompt": "Say it."}, {"prompt": "Say it. ", "answer": "r"}, {"prompt": "Go."}]
    assert measured_rows(rows, tiny_tokenizer(), 40, judged=True) == asked
    assert measured_rows(rows, tiny_tokenizer(), 4000, judged=True) == rows
