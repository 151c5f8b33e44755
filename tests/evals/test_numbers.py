from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densepath.evals.numbers import numerals
from densepath.evals.verifiers import number_in

UNDERSTOOD = {
    "5e-05": "0.00005",
    "1e22": "1" + "0" * 22,
    "1.5E+3": "1500",
    "1.5e−3": "0.0015",  # U+2212
    "5 × 10^3": "5000",
    "5x10^3": "5000",
    "5*10**3": "5000",
    r"5\times10^{3}": "5000",
    r"5 \cdot 10^{-3}": "0.005",
    "1.5 × 10⁻⁵": "0.000015",
    "10⁵": "100000",
    "10^{-3}": "0.001",
    "5,00,000": "500000",  # India
    "1,00,00,000.5": "10000000.5",
    "1\N{NO-BREAK SPACE}300": "1300",
    "1\N{NARROW NO-BREAK SPACE}300\N{THIN SPACE}000": "1300000",
    "1'300": "1300",
    "1_300": "1300",
    r"\boxed{1{,}300}": "1300",
    r"1,\!300": "1300",
    r"1\,300": "1300",
    r"\$1,300.50": "1300.5",
    r"\(18\)": "18",
    r"18\text{ cm}^2": "18",
    r"18^\circ": "18",
    r"50\%": "50",
    "18 m^2": "18",
    "18 m²": "18",
    "18 cm": "18",
    "20 m s^{-1}": "20",
    "１８": "18",
    "１，３００．５": "1300.5",
    "－３": "-3",
    "٣٫٥": "3.5",
    "१८": "18",
    "½": "1/2",
    "-½": "-1/2",
    "2½": "5/2",
    "2 1/2": "5/2",
    "3/4": "3/4",
    r"\frac{3}{4}": "3/4",
    r"-\dfrac34": "-3/4",
    r"2\frac{1}{2}": "5/2",
    "= - 5": "-5",
    "#### - 5": "-5",
    "USD18": "18",
    "Rs. 500": "500",
    "€5": "5",
    "5 million": "5000000",
    "1.5 hundred thousand": "150000",
    "x_{12} = 4": "4",
    "log2 of 8": "8",
    "5!": "5",
    "...5": "5",
    "=\N{NON-BREAKING HYPHEN}5": "-5",
    "5/hour": "5",
    "and/or 5": "5",
    "w/ 5": "5",
    "_5_": "5",
    "__-1,300.5__": "-1300.5",
    r"\approx-5": "-5",
    r"x\leq5": "5",
    r"\Rightarrow 5": "5",
    r"\boxed{\text{Answer: }-5}": "-5",
}
NOT_UNDERSTOOD = [
    "1.300,50",
    "1.300.000",
    "12,3456",
    "1,2,3",
    "0,5",
    "1 300",  # one number or two
    "1 300 000,50",
    "10:30",
    "3/4/2020",
    "1.2.3",
    "1/0",
    "5 3/2",
    "2^{10}",
    "2**10",
    "3²",
    r"\sqrt{2}",
    "√2",
    r"2\pi",
    "2π",
    r"\frac{\pi}{4}",
    r"\frac{3}{x}",
    r"0.\overline{3}",
    "±5",
    "x/2",
    "0x1F",
    "0xFF",
    "5d3",
    "5k",
    "5M",
    "3万",
    "5 lakh",
    "1.5e3.5",
    "1e5,6",
    "1e99999999999999999999",
    "10^99999999999999999999",
    "",
    "none",
    "mp3",
    "eighteen",
]


@pytest.mark.parametrize(("text", "value"), UNDERSTOOD.items())
def test_a_notation_says_its_number(text: str, value: str) -> None:
    for written in (text, f"so it is {text}", f"{text}.", f"7 apples, and then\n{text}\n"):
        if "####" not in text or written.startswith("####"):
            assert number_in(written) == Fraction(value)


@pytest.mark.parametrize("text", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_no_number(text: str) -> None:
    assert number_in(text) is None
    assert all(number.value is None for number in numerals(text))


@pytest.mark.parametrize("text", ["1/-2", "1/(2)", "(1)/2", "(3 + 4)/2", "2 and 1/2", "2  1/2", "2 000 1/2"])
def test_a_part_of_a_quotient_or_of_a_mixed_number_is_not_the_final_number(text: str) -> None:
    assert number_in(text) is None


integers = st.integers(0, 10**12)


def indian(value: int) -> str:
    """Groups of two before the last three digits."""
    digits = str(value)
    head, groups = digits[:-3], [digits[-3:]]
    while head:
        head, groups = head[:-2], [head[-2:], *groups]
    return ",".join(groups)


@given(integers, st.sampled_from(["０", "٠", "०", "𝟎"]))
def test_groups_and_digits_of_other_scripts(value: int, zero: str) -> None:
    plain = f"{value:,}"
    scripted = "".join(chr(ord(zero) + int(d)) if d.isdigit() else d for d in plain)
    grouped = [plain, scripted, indian(value), plain.replace(",", "{,}")]
    grouped += [plain.replace(",", mark) for mark in ("_", "'", "’", "\u202f", "\u00a0", r"\,")]
    assert [number_in(text) for text in grouped] == [value] * len(grouped)


@given(
    st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**9), max_value=10**9, places=4),
    st.integers(-300, 300),
)
def test_exponents(mantissa: Decimal, power: int) -> None:
    right = Fraction(mantissa) * Fraction(10) ** power
    raised = str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    for text in (
        f"{mantissa:f}e{power}",
        f"{mantissa:f}E{power:+04d}",
        rf"{mantissa:f} \times 10^{{{power}}}",
        f"{mantissa:f}×10{raised}",
    ):
        assert number_in(text) == right


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_read_back(value: float) -> None:
    found = number_in(repr(value))
    assert found is not None
    assert float(found) == value


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_fractions(top: int, bottom: int) -> None:
    sign = "-" if top < 0 else ""
    for text in (f"{top}/{bottom}", rf"{sign}\frac{{{abs(top)}}}{{{bottom}}}", f"= {top} / {bottom}"):
        assert number_in(text) == Fraction(top, bottom)


@given(st.text(alphabet="0123456789.,eE+-−×x*^/ {}\\$%'_:½²٣１frac\n#k", max_size=40))
def test_whatever_is_written_is_read_or_not_and_alone_means_the_same(text: str) -> None:
    for number in numerals(text):
        if number.value is not None and "^" not in number.text:
            again = [each.value for each in numerals(number.text)]
            assert len(again) == 1
    number_in(text)


@pytest.mark.parametrize("text", ["9" * 50_000, "1," * 50_000, "1 " * 50_000, "5" + " " * 50_000, r"\frac{" * 20_000])
def test_long_texts_are_read_in_no_time(text: str) -> None:
    started = time.process_time()
    number_in(text)
    assert time.process_time() - started < 2
