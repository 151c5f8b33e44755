"""Verifiers: programs that say whether a completion is right, from its text and its row alone."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol, TypeAlias, cast

from densepath.data.constraints import is_met
from densepath.data.rows import short
from densepath.data.tasks import check_answer
from densepath.errors import ConfigError, DataError, DensepathError
from densepath.evals.numbers import Numeral, Value, numerals
from densepath.records.judging import Preference

Verifier: TypeAlias = Callable[[str, Mapping[str, Any]], float]
"""(completion, row) -> reward; of this module's verifiers 1.0 is right and 0.0 wrong."""


class AnswerJudge(Protocol):
    """What says how good many answers are at once, and may not be able to."""

    def judged(self, answers: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Preference]:
        """What it says of each answer."""


def verdict_on(verifier: Verifier, completion: str, row: Mapping[str, Any], name: str = "the verifier") -> float:
    """What a verifier says of a completion, a finite number: somebody's own program may say or raise anything.

    Args:
        verifier: the program.
        completion: a model's text.
        row: that it is checked against.
        name: what messages call the verifier.

    Raises:
        DensepathError: a row that the verifier cannot check against.
        DataError: it raised something else, or said no finite number.
    """
    try:
        said = verifier(completion, row)
    except DensepathError:
        raise
    except Exception as error:
        raise DataError(f"{name} failed: {type(error).__name__}: {short(str(error))}") from error
    try:
        if math.isfinite(number := float(said)):
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise DataError(f"{name} says {short(repr(said))} of an answer, which is no finite number")


ANSWER_MARK = "####"  # GSM8K writes the final answer behind it


def exact_match(completion: str, row: Mapping[str, Any]) -> float:
    """1.0 where the completion is the row's `answer` but for whitespace and one final period; case counts.

    Args:
        completion: a model's text.
        row: has the right `answer`, a string.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: the row has no `answer`.

    >>> exact_match(" CAT,  DOG. ", {"answer": "CAT, DOG"}), exact_match("cat, dog", {"answer": "CAT, DOG"})
    (1.0, 0.0)
    """
    return float(check_answer(completion, row))


def final_number(completion: str, row: Mapping[str, Any]) -> float:
    """1.0 where the completion's final number equals that of the row's `answer`, as numbers (18 = 18.00 = $18).

    The final number is the first behind the last "####"; without that mark, the last one in the text. A completion
    without a number, with nothing behind the mark, or with a final number that `numerals` does not understand is
    wrong.

    Args:
        completion: a model's text.
        row: has the right `answer`: a number, its text, or a whole solution as in GSM8K.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: the row's `answer` is missing, or is not one number that is understood.

    >>> final_number("16 - 3 = 13, so she makes $1,300.", {"answer": "#### 1300"})
    1.0
    """
    return float(number_in(completion) == _right_number(row.get("answer")))


def _right_number(answer: Any) -> Value:
    """The number that a row's answer says.

    Raises:
        DataError: it says none, several, or one that is not understood.
    """
    if isinstance(answer, int) and not isinstance(answer, bool):
        return Decimal(answer)
    said = f'the row\'s "answer" is {short(repr(answer))}, which'
    if isinstance(answer, (float, Decimal)):
        value = Decimal(repr(float(answer))) if isinstance(answer, float) else answer  # numpy's repr names its type
        if not value.is_finite():
            raise DataError(f"{said} is no number; add the right one")
        return value
    found = _final_numerals(answer) if isinstance(answer, str) else []
    if not found:
        raise DataError(f"{said} holds no number; add the right one")
    if any(number.value is None for number in found):
        written = next(number.text for number in found if number.value is None)
        raise DataError(f"{said} holds {written!r}, a number that is not understood; write it like 1300.5 or 1.3e3")
    if any(number.value != found[0].value for number in found):
        raise DataError(f'{said} holds several numbers; put "{ANSWER_MARK}" before the right one')
    return cast(Value, found[0].value)


def instruction_format(completion: str, row: Mapping[str, Any]) -> float:
    """1.0 where the completion meets all of the row's `constraints`; what it says besides is not judged.

    Args:
        completion: a model's text.
        row: has `constraints`, as `data.constraints` describes and makes them.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: the row has no constraints, or one that is not understood.
        ConfigError: a language is asked for, and py3langid is not installed.

    >>> instruction_format("Rain.", {"constraints": [{"kind": "max_words", "count": 3}]})
    1.0
    """
    constraints = row.get("constraints")
    if not isinstance(constraints, (list, tuple)) or not constraints:
        raise DataError(
            f"the row's \"constraints\" are {constraints!r}; write constrained: before the data set's name"
        )
    met = [is_met(constraint, completion) for constraint in constraints]  # each is read, so that a bad one is named
    return float(all(met))


def number_in(text: str) -> Value | None:
    """Final number of a text, exactly: first behind the last "####", else the last one.

    Returns:
        The number; None where there is none, or where it is written in a way that is not understood.

    >>> number_in("It was -$1,250.50."), number_in("16-3-4=9"), number_in("1.300,50"), number_in("none")
    (Decimal('-1250.50'), Decimal('9'), None, None)
    """
    found = _final_numerals(text)
    return found[-1].value if found else None


def _final_numerals(text: str) -> list[Numeral]:
    """The first numeral behind the last "####"; without that mark all of them."""
    _, mark, tail = text.rpartition(ANSWER_MARK)
    return numerals("=" + tail)[:1] if mark else numerals(tail)  # a minus behind "=" is a sign


VERIFIERS: dict[str, Verifier] = {
    "exact_match": exact_match,
    "final_number": final_number,
    "instruction_format": instruction_format,
}


def get_verifier(name: str) -> Verifier:
    """Verifier by its name in this module, or any function by "package.module:function".

    Args:
        name: a key of `VERIFIERS`, or an import path that names a function (completion, row) -> float.

    Returns:
        The function.

    Raises:
        ConfigError: no such name, or a module or function that cannot be imported.
    """
    if name in VERIFIERS:
        return VERIFIERS[name]
    module_name, colon, function_name = name.partition(":")
    if not (colon and module_name and function_name):
        known = ", ".join(sorted(VERIFIERS))
        raise ConfigError(f'verifier {name!r} does not exist; choose {known}, or give "package.module:function"')
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises while it is imported
        raise ConfigError(
            f"verifier {name!r}: the module {module_name!r} cannot be imported ({type(error).__name__}: {error}); "
            "install it or put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        what = "has no" if function is None else "has no callable"
        raise ConfigError(f"verifier {name!r}: {module_name} {what} {function_name!r}; correct the name")
    return cast(Verifier, function)
