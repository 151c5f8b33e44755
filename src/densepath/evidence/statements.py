"""What the comparisons of a setting say in words, and what to be wary of: from the numbers alone."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.evidence.cells import Place, SettingCells, is_measured, verdicts
from densepath.evidence.comparisons import EQUAL_COMPUTE, LENGTH_SHARE, SEES_VALIDATION
from densepath.records.arm import BASE, SFT, TRUNCATED_WATCH, ArmResult
from densepath.records.estimates import Interval, Verdict
from densepath.records.judged import PositionBias
from densepath.records.results import ArmComparison, ArmRow, Statement
from densepath.report.verdict import KL_WATCH, place_warning
from densepath.report.words import interval_text


def statements(cells: SettingCells, comparisons: Sequence[ArmComparison]) -> list[Statement]:
    """Of each method and decoding: against SFT and the best control in one sentence, then against other controls."""
    together: dict[tuple[str, bool, str], list[ArmComparison]] = {}
    for one in comparisons:
        together.setdefault((one.method, one.own_decoding, one.decoding), []).append(one)
    return [
        Statement(method, own, decoding, _sentence(cells, ones)) for (method, own, decoding), ones in together.items()
    ]


def _sentence(cells: SettingCells, ones: Sequence[ArmComparison]) -> str:
    more = [one for one in ones if one.role in (EQUAL_COMPUTE, SEES_VALIDATION)]
    ones = [one for one in ones if one not in more]
    first = ones[0]
    label = cells.info(first.method).label
    start = f"{label} ({first.decoding})" if first.own_decoding else f"At {first.decoding}, {label}"
    same = len(ones) == 2 and (ones[0].against, ones[0].against_decoding) == (
        ones[1].against,
        ones[1].against_decoding,
    )
    clauses = [_clause(cells, one, same) for one in (ones[:1] if same else ones)]
    joint = " and " if len({one.verdict for one in ones}) == 1 else " but "
    text = f"{start} {joint.join(clauses)}."
    for one in more:
        if one.against != ones[-1].against:
            text += f" It {_clause(cells, one, same=False)}."
    if any(one.difference is not None and one.difference.unit == "prompts" for one in ones):
        text += " The interval is over prompts, not over seeds."
    ratio = first.length_ratio
    if first.length_flag and ratio is not None:
        text += f" Its completions are {ratio:.2f} times as long as {cells.info(first.against).label}'s."
    return text


def _clause(cells: SettingCells, one: ArmComparison, same: bool) -> str:
    name = cells.info(one.against).label
    decoding = f" ({one.against_decoding})" if one.own_decoding else ""
    if one.role == "sft":
        name = f"{name}{decoding}" + (", which is also the best control," if same else "")
    elif one.role == "best control":
        name = f"the best control ({name}{', ' + one.against_decoding if one.own_decoding else ''})"
    else:
        what = "at its compute" if one.role == EQUAL_COMPUTE else "that was trained on the validation prompts"
        name = f"the control {what} ({name}, {one.against_decoding})"
    if one.verdict is Verdict.INCOMPLETE:
        return f"is not compared with {name}: {_seeds(one.missing_seeds)} missing on test"
    shown = one.difference
    if shown is None:  # unreachable for a complete comparison
        return f"is not compared with {name}"
    if one.verdict is not Verdict.TIE:
        size = (
            Interval(-shown.mean, -shown.high, -shown.low, shown.n, shown.unit)
            if one.verdict is Verdict.WORSE
            else shown
        )
        return f"is {one.verdict.value} than {name} by {_interval(size)}"
    text = f"ties with {name} ({_interval(shown, signed=True)}"
    if not shown.low <= 0 <= shown.high and one.p is not None and one.p_holm is not None:
        text += f"; p = {one.p:.2g}, and {one.p_holm:.2g} after correction for all comparisons"
    return text + ")"


def _interval(value: Interval, *, signed: bool = False) -> str:
    return interval_text(value, signed=signed)


def warnings(cells: SettingCells, rows: Sequence[ArmRow], position: PositionBias | None = None) -> list[str]:
    """What a reader of the table has to know first."""
    found = [
        f"The judge could say nothing of {number} answers' {split} prompts; these are left out for every method."
        for split, number in cells.unjudged.items()
        if number
    ]
    by_place = place_warning(position, "the pairs on test")
    found += [by_place] if by_place is not None else []
    if len(cells.seeds) == 1:
        found.append("One seed: every interval is over prompts and says nothing about how another training would end.")
    elif len(cells.seeds) == 2:
        found.append("Two seeds: a t-interval over two is very wide, and hardly any difference can be shown.")
    found += _missing(cells)
    if cells.own_place(SFT) is None:
        found.append("SFT lacks validation results: nothing is compared at each one's own decoding.")
    said: dict[tuple[str, str], list[str]] = {}
    for row in (row for row in rows if row.method != BASE):  # it was not made from SFT
        for line in _row_warnings(row):
            said.setdefault((row.label, line), []).append(row.decoding)
    found += [f"{label} ({', '.join(decodings)}): {line}" for (label, line), decodings in said.items()]
    found += _truncated(rows)
    for info in cells.methods:
        if info.name != SFT and _is_sft(cells, info.name):
            found.append(f"{info.label}: the values of every prompt are those of SFT. Is it the SFT model?")
    return found


def _missing(cells: SettingCells) -> list[str]:
    found = []
    for info in cells.methods:
        if not cells.of_method(info.name):
            found.append(f"{info.label}: no result; it did not run, or failed.")
            continue
        for split, outcome in (
            ("test", "Its means are of the other seeds, which may be the lucky ones, so it gets no verdict there."),
            (
                "validation",
                "Nothing of it is chosen there" + (", nor is it taken as the best control." if info.control else "."),
            ),
        ):
            seeds: dict[tuple[int, ...], list[str]] = {}
            for decoding in cells.decodings:
                place = Place(info.name, decoding)
                if cells.of(place, split) and cells.missing(place, split):
                    seeds.setdefault(tuple(cells.missing(place, split)), []).append(decoding)
            found += [
                f"{info.label}: {_seeds(missing)} missing on {split} ({', '.join(decodings)}). " + outcome
                for missing, decodings in seeds.items()
            ]
    return found


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} {'are' if len(seeds) > 1 else 'is'}"


def _truncated(rows: Sequence[ArmRow]) -> list[str]:
    """One line for all arms: the budget of tokens is the same for each, and so is the remedy."""
    cut: dict[str, list[str]] = {}
    for row in rows:
        if row.method != BASE and row.truncated is not None and row.truncated > TRUNCATED_WATCH:
            cut.setdefault(row.label, []).append(f"{row.truncated:.0%} {row.decoding}")
    if not cut:
        return []
    shares = "; ".join(f"{label} {', '.join(each)}" for label, each in cut.items())
    return [f"Completions cut off at the length limit: {shares}. Raise max_completion_length."]


def _row_warnings(row: ArmRow) -> list[str]:
    found = []
    if row.length_flag:
        found.append(
            f"completions are {row.length_ratio:.2f} times as long as SFT's, more than {LENGTH_SHARE:.0%} apart: "
            "a difference may be one of length."
        )
    if row.kl is not None and row.kl > KL_WATCH:
        found.append(f"KL to SFT is {row.kl:.2f} nats per completion; most collapses came above {KL_WATCH}.")
    return found


def _is_sft(cells: SettingCells, method: str) -> bool:
    """Whether every test value of a method is that of SFT at the same decoding and seed, and that says something.

    Where all answers are wrong and cut off, any two models agree in them; the likelihood of demonstrations tells them
    apart wherever it was measured of both.
    """
    theirs = {(cell.decoding, cell.seed): cell for cell in cells.of_method(SFT) if cell.split == "test"}
    mine = [cell for cell in cells.of_method(method) if cell.split == "test"]
    pairs = [(cell, theirs[place]) for cell in mine if (place := (cell.decoding, cell.seed)) in theirs]
    if len(pairs) < len(mine) or not all(is_measured(cell) and _agree(cell, other) for cell, other in pairs):
        return False
    return any(
        len(set(verdicts(cell))) > 1 or len(set(cell.lengths)) > 1 or (cell.nll is not None and cell.nll == other.nll)
        for cell, other in pairs
    )


def _agree(cell: ArmResult, other: ArmResult) -> bool:
    """Whether two cells have the same verdicts, lengths and, where both have it, likelihood of demonstrations."""
    same = cell.nll is None or other.nll is None or cell.nll == other.nll
    return same and verdicts(cell) == verdicts(other) and cell.lengths == other.lengths
