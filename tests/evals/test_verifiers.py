from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from densepath.data.formats import as_dataset
from densepath.data.tasks import generate_tasks
from densepath.errors import ConfigError, DataError
from densepath.evals.verifiers import (
    VERIFIERS,
    exact_match,
    final_number,
    get_verifier,
    instruction_format,
    number_in,
)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18"),
        ("#### 18 dollars for 2 days", "18"),  # the first one behind the mark
        ("#### 7\nWait.\n#### 8", "8"),  # the last mark
        ("####-5", "-5"),
        ("so it is 42.", "42"),
        ("so it is 42.50.", "42.5"),
        ("$1,234,567.89!", "1234567.89"),
        ("7, 800 and 2", "2"),
        ("-3", "-3"),
        ("−3", "-3"),  # U+2212
        ("-$3", "-3"),
        ("$-3", "-3"),
        ("it fell by (-3)", "-3"),
        ("16-3", "3"),  # a subtraction
        ("16 - 3", "3"),
        ("(16)-3", "3"),
        ("x-3", "3"),
        (".5", "0.5"),
        ("007", "7"),
        ("50%", "50"),
        ("**72**", "72"),
        (r"\boxed{72}", "72"),
        ("no number", None),
        ("", None),
        ("16 - 3 = 13\n####", None),  # marked, and then nothing
    ],
)
def test_number_in(text: str, number: str | None) -> None:
    assert number_in(text) == (None if number is None else Decimal(number))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-(10**9), max_value=10**9))
def test_a_number_is_read_however_it_is_written(value: Decimal) -> None:
    for written in (f"{value}", f"{value:,}", f"Total: {value:,}.", f"1 + 1\n#### {value:,}\n"):
        assert number_in(written) == value
    assert number_in(f"{'-' if value < 0 else ''}${abs(value):,} in all") == value
    assert final_number(f"#### {value}", {"answer": f"{value:,}"}) == 1.0


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("The answer is 18.", "18", 1.0),
        ("18.00", 18, 1.0),
        ("18", "9 * 2 = 18\n#### 18", 1.0),
        ("18", 18.5, 0.0),
        ("1800", "1,800", 1.0),
        ("180", "18", 0.0),
        ("I do not know", "18", 0.0),
    ],
)
def test_final_number(completion: str, answer: Any, reward: float) -> None:
    assert final_number(completion, {"answer": answer}) == reward


@pytest.mark.parametrize("row", [{}, {"answer": None}, {"answer": "many"}, {"answer": True}, {"answer": [18]}])
def test_an_answer_without_a_number_is_the_rows_fault(row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="holds no number"):
        final_number("18", row)


@pytest.mark.parametrize(
    ("completion", "answer", "reward"),
    [
        ("so it is 0.00005", 0.00005, 1.0),
        ("5", 0.00005, 0.0),  # str(0.00005) is "5e-05"
        ("22", 1e22, 0.0),
        ("1" + "0" * 22, 1e22, 1.0),
        ("0.1", 0.1, 1.0),
        ("5,00,000", "1,00,000", 0.0),
        ("1/3", "\\frac{1}{3}", 1.0),
        ("0.3333333333333333333333333333", "1/3", 0.0),
        (f"{10**40 + 1}", -(10**40) - 1, 0.0),
        (f"-{10**40 + 1}", -(10**40) - 1, 1.0),  # more digits than a Decimal context keeps
        ("1.300,50", "1300.5", 0.0),
        ("1.300,50", 50, 0.0),
        ("18", "18 and again 18.00", 1.0),
    ],
)
def test_numbers_are_compared_exactly(completion: str, answer: Any, reward: float) -> None:
    assert final_number(completion, {"answer": answer}) == reward


def test_numpys_numbers_are_numbers() -> None:
    assert final_number("0.5", {"answer": np.float64(0.5)}) == 1.0
    assert as_dataset([{"answer": np.int64(3)}, {"answer": np.array([1, 2])}])["answer"] == [3, [1, 2]]


def test_a_number_may_have_more_digits_than_int_reads() -> None:
    assert final_number("9" * 5000, {"answer": 10**5000 - 1}) == 1.0


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("1.300,50", "holds '1.300,50', a number that is not understood; write it like 1300.5"),
        ("12,3456", "not understood"),
        ("5k", "not understood"),
        ("3-5", 'several numbers; put "####" before the right one'),
        ("18 dollars for 2 days", "several numbers"),
        ("2020-01-05", "several numbers"),
        (float("nan"), "is no number"),
        (float("inf"), "is no number"),
        (Decimal("NaN"), "is no number"),
        ("NaN", "holds no number"),
        ("eighteen", "holds no number"),
    ],
)
def test_an_answer_that_is_not_one_number_is_refused(answer: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        final_number("18", {"answer": answer})


def test_exact_match_agrees_with_the_tasks_own_check() -> None:
    for row in generate_tasks(60, seed=0, error_rate=0.5):
        assert exact_match(row["completion"][0]["content"], row) == float(row["correct"])
        assert exact_match(f" {row['answer']}.\n", row) == 1.0


def test_exact_match_is_case_sensitive_and_needs_an_answer() -> None:
    assert exact_match("cat", {"answer": "CAT"}) == 0.0
    with pytest.raises(DataError):
        exact_match("cat", {})


def test_get_verifier_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert get_verifier("exact_match") is exact_match
    assert get_verifier("final_number") is VERIFIERS["final_number"] is final_number
    assert get_verifier("densepath.evals.verifiers:exact_match") is exact_match
    (tmp_path / "my_rewards.py").write_text(
        "def short(completion, row):\n    return 1 / (1 + len(completion))\nx = 3\n"
    )
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert get_verifier("my_rewards:short")("abc", {}) == 0.25
    for name, said in {
        "exact": "verifier 'exact' does not exist; choose exact_match, final_number, instruction_format, or give",
        "my_rewards:": "does not exist",
        "my_rewards:long": "my_rewards has no 'long'",
        "my_rewards:x": "my_rewards has no callable 'x'",
        "my_nowhere:f": "'my_nowhere' cannot be imported .ModuleNotFoundError.*PYTHONPATH",
        "my_broken:f": "'my_broken' cannot be imported .ZeroDivisionError",
    }.items():
        with pytest.raises(ConfigError, match=said):
            get_verifier(name)


SHORT_JSON = {"constraints": [{"kind": "json", "keys": ["answer"]}, {"kind": "max_words", "count": 3}]}


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ('{"answer": "sun"}', 1.0),
        ('{"answer": "sun and rain and snow"}', 0.0),  # too long
        ("sun", 0.0),  # no JSON
        ("", 0.0),
    ],
)
def test_instruction_format_wants_all_constraints_met(completion, right):
    assert get_verifier("instruction_format")(completion, SHORT_JSON) == right


@pytest.mark.parametrize("row", [{}, {"constraints": []}, {"constraints": "max_words"}, {"constraints": None}])
def test_instruction_format_refuses_rows_without_constraints(row):
    with pytest.raises(DataError, match=r'"constraints" are .*; write constrained: before the data set'):
        instruction_format("text", row)


def test_instruction_format_names_a_bad_constraint_behind_one_that_fails():
    row = {"constraints": [{"kind": "min_words", "count": 9}, {"kind": "rhyme"}]}
    with pytest.raises(DataError, match="no known kind"):
        instruction_format("text", row)
