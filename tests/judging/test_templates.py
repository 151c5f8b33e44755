"""Templates say what they are given and nothing else; a user's own is read as ours are."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import pytest

from densepath.errors import ConfigError, DataError, MissingFileError
from densepath.judging.protocol import JudgeRequest
from densepath.judging.templates import TEMPLATES, WORDING, load_template
from densepath.judging.verdicts import Reply

ASKED = ({"role": "user", "content": "QUESTION-ONE"},)
WORDS = (
    "QUESTION-ONE",
    "QUESTION-TWO",
    "FIRST-ONE",
    "FIRST-TWO",
    "SECOND-ONE",
    "SECOND-TWO",
    "RIGHT-ONE",
    "RIGHT-TWO",
)


def request(num_answers: int, turns: int = 1, reference: bool = False, category: str = "any") -> JudgeRequest:
    def texts(word):
        return (f"{word}-ONE", f"{word}-TWO")[:turns]

    return JudgeRequest(
        ASKED,
        (texts("FIRST"), texts("SECOND"))[:num_answers],
        ("QUESTION-TWO",)[: turns - 1],
        texts("RIGHT") if reference else None,
        {"category": category},
    )


def shown(template: str, *args, **fields) -> str:
    loaded = load_template(template)
    messages = loaded.messages(request(loaded.num_answers, *args, **fields))
    assert all(turn["role"] in ("system", "user") for turn in messages)
    return "\n".join(turn["content"] for turn in messages)


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_template_shows_all_that_it_is_given_in_order(name):
    template = load_template(name)
    forms = [form for form in template.forms if form.categories is None]
    assert forms
    for form in forms:
        text = shown(name, form.turns, form.reference)
        expected = [word for word in WORDS if "RIGHT" not in word]
        if form.turns == 1:
            expected = [word for word in expected if "TWO" not in word]
        if template.num_answers == 1:
            expected = [word for word in expected if "SECOND" not in word]
        for word in expected:
            assert word in text, (name, form.turns, word)
        assert ("RIGHT-ONE" in text) == form.reference
        if template.num_answers == 2:
            assert text.index("FIRST-ONE") < text.index("SECOND-ONE")
        assert not re.search(r"\{\{|\{%", text)


def test_only_the_forms_that_fit_are_asked():
    assert "RIGHT-ONE" in shown("mt_bench", reference=True)
    assert "RIGHT-ONE" not in shown("arena_hard", reference=True)
    assert "answer of your own" in shown("arena_hard")
    assert "answer of your own" not in shown("arena_hard", category="creative_writing")
    with pytest.raises(DataError, match="has no form for 2 turns without a reference"):
        shown("arena_hard", 2)
    with pytest.raises(DataError, match="shows 1 answers, and 2 were given"):
        load_template("mt_bench").messages(request(2))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{{ answer_a.split('</think>')[1] }}", None),  # what the answers that are asked about have
        (
            "{% if ref_answer_1 is defined %}{{ ref_answer_1 }}{% endif %}{% for n in range(2) %}{{ n }}{% endfor %}",
            None,
        ),
        ("{{ answer }}", "'answer' is undefined; there are answer_a"),
        ("{{ answer_a_2 }}", "'answer_a_2' is undefined"),
    ],
)
def test_a_question_is_refused_early_for_what_no_answer_will_change(tmp_path, content, says):
    text = Path(WORDING / "pair.yaml").read_text().partition("forms:")[0]
    forms = json.dumps([{"messages": [{"role": "user", "content": content}]}])
    (tmp_path / "own.yaml").write_text(f"{text}forms: {forms}\n")
    template = load_template(str(tmp_path / "own.yaml"))
    with pytest.raises(DataError, match=says) if says else contextlib.nullcontext():
        template.check(request(2))


def test_the_wording_of_mt_bench_is_the_benchmarks():
    """A few sentences, literally: its grades are compared with published ones."""
    text = shown("mt_bench")
    assert text.startswith(
        "You are a helpful assistant.\n[Instruction]\nPlease act as an impartial judge and evaluate"
    )
    assert 'rate the response on a scale of 1 to 10 by strictly following this format: "[[rating]]"' in text
    assert text.endswith("[The Start of Assistant's Answer]\nFIRST-ONE\n[The End of Assistant's Answer]")
    for name in ("mt_bench", "mt_bench_pair"):
        assert "Apache License, Version 2.0" in (WORDING / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", ["letters", "grade"])
def test_templates_of_ours_ask_for_as_many_first_tokens_as_there_are(name):
    """Of five first tokens one was a letter alone in half of a weak judge's replies, and the other counted nothing."""
    assert load_template(name).parameters["top_logprobs"] == 20


def test_a_conversation_before_the_answer_is_shown_whole():
    turns = ({"role": "system", "content": "Be brief."}, *ASKED)
    text = load_template("pair").messages(JudgeRequest(turns, (("a",), ("b",))))[-1]["content"]
    assert "system: Be brief.\n\nuser: QUESTION-ONE" in text


def test_what_an_answer_says_is_not_read_as_a_template():
    text = load_template("pair").messages(JudgeRequest(ASKED, (("{{ row }}{% if %}",), ("b",))))[-1]["content"]
    assert "{{ row }}{% if %}" in text


OWN = """
name: mine
num_answers: 2
reading: {marks: {x: ">", y: "<"}}
parameters: {temperature: 0.5}
forms:
  - messages:
      - {role: user, content: "CONTENT"}
"""


def test_a_users_own_template_is_read(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("CONTENT", "{{ question }} {{ row.level }} {{ answer_a }} {{ answer_b }}"))
    template = load_template(str(path))
    asked = JudgeRequest(ASKED, (("a",), ("b",)), row={"level": 3})
    assert template.messages(asked) == [{"role": "user", "content": "QUESTION-ONE 3 a b"}]
    assert template.read(Reply("[[Y]]")).preference == 0.0
    assert template.parameters == {"temperature": 0.5}


def test_a_mark_that_is_never_read_is_named(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("{x: ", "{Answer X: "))
    with pytest.raises(ConfigError, match=r"mine\.yaml: the mark 'Answer X' is never read; write up to 12 of"):
        load_template(str(path))


def test_the_template_of_the_document_is_one(tmp_path: Path):
    document = (Path(__file__).parents[2] / "docs/judges.md").read_text(encoding="utf-8")
    (tmp_path / "terse.yaml").write_text(re.search(r"```jinja\n(.*?)```", document, re.S)[1])
    template = load_template(str(tmp_path / "terse.yaml"))
    assert "First: FIRST-ONE\n\nSecond: SECOND-ONE" in template.messages(request(2))[0]["content"]
    assert template.read(Reply("[[Same]]")).preference == 0.5


def test_the_document_names_every_template():
    document = (Path(__file__).parents[2] / "docs/judges.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+)` \| [12] \|", document, re.M)) == sorted(TEMPLATES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{{ question", "no Jinja template"),
        ("{{ question.__class__.__mro__ }}", "unsafe"),
        ("{{ reply }}", "'reply' is undefined; there are answer_a,"),
        ("{{ 1 // 0 }}", "judge template mine: ZeroDivisionError: "),
        ("{{ question + 1 }}", "judge template mine: TypeError: "),
        ("{{ 2.0 ** 5000 }}", "judge template mine: OverflowError: "),
    ],
)
def test_a_content_that_cannot_be_filled_is_said(tmp_path: Path, content, says):
    path = tmp_path / "mine.yaml"
    path.write_text(OWN.replace("CONTENT", content))
    with pytest.raises((ConfigError, DataError), match=says):
        load_template(str(path)).messages(request(2))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: mine", "missing"),
        (OWN.replace("num_answers: 2", "num_answers: 1"), "num_answers is 1"),
        (OWN.replace('{marks: {x: ">", y: "<"}}', "{letters: {a: 1, b: 2}}"), "a letter is worth 2"),
        (OWN.replace("content:", "text:"), "no content"),
        (OWN.replace('- {role: user, content: "CONTENT"}', "[]"), "without messages"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_template_is_refused_in_one_line(tmp_path: Path, text, says):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_template(str(path))
    assert "\n" not in str(caught.value)
    assert "mine.yaml" in str(caught.value)


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="choose one of: alpaca_eval, arena_hard, grade, letters, mt_bench"):
        load_template("alpaca")
    with pytest.raises(MissingFileError, match="no such file"):
        load_template("no/such.yaml")
