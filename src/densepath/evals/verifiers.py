"""Verifiers: programs that say whether a completion is right, from its text and its row alone."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias, cast

from densepath.data.constraints import is_met
from densepath.data.tasks import check_answer
from densepath.errors import ConfigError, DataError

Verifier: TypeAlias = Callable[[str, Mapping[str, Any]], float]
"""(completion, row) -> reward; of this module's verifiers 1.0 is right and 0.0 wrong."""

ANSWER_MARK = "####"  # GSM8K writes the final answer behind it

# A sign, a dollar, digits (grouped by commas or not), decimals. A minus right behind a digit, a letter or a closing
# bracket is a subtraction; a comma groups only before three digits; a period counts only before a digit.
_NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z)\]])-)?(?:\$-?)?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
)


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
    without a number, or with nothing behind the mark, is wrong.

    Args:
        completion: a model's text.
        row: has the right `answer`: a number, its text, or a whole solution as in GSM8K.

    Returns:
        1.0 or 0.0.

    Raises:
        DataError: the row's `answer` is missing or holds no number.

    >>> final_number("16 - 3 = 13, so she makes $1,300.", {"answer": "#### 1300"})
    1.0
    """
    answer = row.get("answer")
    usable = isinstance(answer, (str, int, float, Decimal)) and not isinstance(answer, bool)
    expected = number_in(str(answer)) if usable else None
    if expected is None:
        raise DataError(f'the row\'s "answer" is {answer!r}, which holds no number; add the right one')
    return float(number_in(completion) == expected)


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


def number_in(text: str) -> Decimal | None:
    """Final number of a text, exactly: first behind the last "####", else the last one; None when there is none.

    >>> number_in("It was -$1,250.50."), number_in("16-3-4=9"), number_in("none")
    (Decimal('-1250.50'), Decimal('9'), None)
    """
    plain = text.replace("\N{MINUS SIGN}", "-")
    _, mark, tail = plain.rpartition(ANSWER_MARK)
    found = [match.group() for match in _NUMBER.finditer(tail)]
    if not found:
        return None
    number = found[0] if mark else found[-1]
    value = Decimal(re.sub(r"[$,-]", "", number))
    return -value if "-" in number else value


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
