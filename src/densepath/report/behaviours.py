"""What purification found, as parts of a document: the behaviours, the mix of prompts, and rows token by token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from densepath import __version__
from densepath.records.behaviours import Behaviour, Mixture, Purification
from densepath.records.completion import Sample, ScoredRow
from densepath.report.document import (
    Column,
    Document,
    Fold,
    Notice,
    Paragraph,
    Part,
    Row,
    Samples,
    Section,
    Table,
    present,
)
from densepath.report.heatmap import quoted
from densepath.report.next_step import after_purification
from densepath.report.parse import clean
from densepath.report.sections import warnings_notice
from densepath.report.words import Words, interval, nats, number, share, short

LONGEST_QUOTE = 28
"""Characters of a prompt or an answer in a terminal's row, which is then one line of 80 columns."""
_WORDS = (
    "A behaviour is a consistent way to answer. Share: of the demonstrations. Lift: how much SFT raised it over the "
    "model before SFT, ± its standard error; below 0 it is being unlearned, and from 2 on it is new, which the reward "
    "cannot judge. Reward: of its demonstrations, per square root of a token."
)
_COLOURS = (
    "Rows that are a behaviour's most surely, and rows that were set aside most surely. A token is coloured by how "
    "much likelier SFT made it: that says what is new, not what is right."
)


def purification_section(record: Purification) -> Section:
    """For the page of a run: the answer, the behaviours, the mix, and rows with their tokens coloured."""
    shown = _shown_mixture(record)
    parts: list[Part | None] = [
        _answer(record),
        warnings_notice(record.warnings),
        Paragraph(_WORDS, "muted") if shown else None,
        _behaviours(record) if shown else None,
        _kinds(record),
        Paragraph(_COLOURS, "muted") if record.rows else None,
    ]
    if shown is not None:
        parts.append(_heat_maps(tuple(_examples(record, shown))))
    parts.append(_heat_maps(tuple(_worst(record))))
    for mixture in record.mixtures:
        heat_maps = None if mixture is shown else _heat_maps(tuple(_examples(record, mixture)))
        if heat_maps is not None:
            parts.append(Fold(f"Examples of the {len(mixture.behaviours)} behaviours", (heat_maps,)))
    return Section("behaviours", "What the demonstrations are made of", present(parts), link="Behaviours")


def purification_page(record: Purification, folder: str, facts: Sequence[tuple[str, str]]) -> Document:
    """The section as a page of its own.

    Args:
        record: what was found.
        folder: where the model is.
        facts: names and values above it.
    """
    section = purification_section(record)
    return Document(
        brand="densepath purify",
        title="Purified SFT",
        heading=section.title,
        facts=tuple((name, clean(value)) for name, value in facts),
        sections=(dataclasses.replace(section, title=""),),
        footer=f"Written by densepath {__version__}.",
        next=after_purification(record, folder, dict(facts)),
    )


def purification_parts(record: Purification) -> tuple[Part, ...]:
    """For a terminal of 80 columns."""
    behaviours = _behaviours(record, brief=True) if record.mixtures else None
    found = [behaviours, _kinds(record), _brief_rows(record), _answer(record), warnings_notice(record.warnings)]
    return present(found)


def _answer(record: Purification) -> Notice:
    if not record.trained:
        return Notice("The SFT model is kept.", (record.reason,), headline=True)
    every = record.kept + record.dropped
    kept = f"{record.kept:,} of {every:,} demonstrations"
    if record.drawn is not None and record.drawn < record.kept:
        kept = f"{record.drawn:,} rows drawn from the {kept} that are kept"
    title = f"The SFT model was trained again, on {kept}."
    return Notice(title, (record.reason,), headline=True)  # whether it is better, the results say


def _shown_mixture(record: Purification) -> Mixture | None:
    """The mixture of the chosen behaviour; else the one that explains the held-out demonstrations best."""
    for mixture in record.mixtures:
        if len(mixture.behaviours) == record.of:
            return mixture
    known = [mixture for mixture in record.mixtures if mixture.held_out is not None]
    return max(known, key=lambda each: each.held_out or 0.0) if known else next(iter(record.mixtures), None)


def _name(behaviour: Behaviour, mixture: Mixture) -> str:
    return f"{behaviour.number} of {len(mixture.behaviours)}"


def _is_chosen(record: Purification, behaviour: Behaviour, mixture: Mixture) -> bool:
    return (record.behaviour, record.of) == (behaviour.number, len(mixture.behaviours))


# --- Figures ---------------------------------------------------------------------------------------------------------


def _behaviours(record: Purification, *, brief: bool = False) -> Table:
    judged = any(each.validation for mixture in record.mixtures for each in mixture.behaviours)
    columns = [Column("behaviour"), Column("share", numeric=True), Column("before SFT", numeric=True)]
    columns += [Column("lift", "nats", numeric=True), Column("reward", "nats/√token", numeric=True)]
    columns += [Column("right", "validation", numeric=True)] if judged else []
    rows = []
    for mixture in record.mixtures:
        for each in mixture.behaviours:
            chosen = _is_chosen(record, each, mixture)
            cells: list[Words] = [_name(each, mixture) + (" ✓" if chosen else "")]
            cells += [share(each.share), share(each.reference_share), _lift(each), nats(each.reward)]
            if judged:
                right = interval(each.validation)
                cells.append(short(right) if brief else right)
            rows.append(Row(tuple(cells), chosen, "" if brief else _group(mixture)))
    caption = "✓: what is trained on." if record.behaviour is not None else "None was chosen."
    return Table(tuple(columns), tuple(rows), title="behaviours" if brief else "", caption=caption)


def _lift(behaviour: Behaviour) -> str:
    if behaviour.is_new or behaviour.lift_error is None:
        return "new" if behaviour.is_new else number(behaviour.lift, "+.2f")
    return f"{number(behaviour.lift, '+.2f')} ± {number(behaviour.lift_error, '.2f')}"


def _group(mixture: Mixture) -> str:
    held_out = number(mixture.held_out, ".2f")
    return f"{len(mixture.behaviours)} behaviours (held-out demonstrations: {held_out} nats each)"


def _kinds(record: Purification) -> Table | None:
    """The mix of prompts before and after; None where it cannot have changed."""
    if not record.trained or len(record.kinds) < 2:
        return None
    columns = (Column("kind of prompt"), Column("of all", numeric=True), Column("of those kept", numeric=True))
    rows = tuple(Row((name, share(before), share(after))) for name, before, after in record.kinds)
    return Table(columns, rows, title="mix of prompts", caption="Mix of prompts before and after.")


# --- Rows ------------------------------------------------------------------------------------------------------------


def _examples(record: Purification, mixture: Mixture) -> Iterator[Sample]:
    known = {row.number: row for row in record.rows}
    for each in mixture.behaviours:
        chosen = ", trained on" if _is_chosen(record, each, mixture) else ""
        for row in each.examples:
            if row in known:
                yield _sample(f"behaviour {_name(each, mixture)}{chosen}: row {row}", known[row])


def _worst(record: Purification) -> Iterator[Sample]:
    known = {row.number: row for row in record.rows}
    yield from (_sample(f"set aside: row {row}", known[row]) for row in record.worst if row in known)


def _sample(title: str, row: ScoredRow) -> Sample:
    names = ("demonstration",) if len(row.turns) == 1 else tuple(f"turn {at}" for at in range(1, len(row.turns) + 1))
    turns = dict(zip(names, row.turns, strict=True))
    name = title if row.id is None else f"{title}, {row.id}"
    return Sample(name, row.prompt or "", None, row.category, turns)


def _heat_maps(samples: tuple[Sample, ...]) -> Samples | None:
    return Samples(samples, {}, searched=False) if samples else None


def _brief_rows(record: Purification) -> Table | None:
    """The examples of each behaviour and the worst rows, each on a line: the beginnings of prompt and answer."""
    shown = _shown_mixture(record)
    if shown is None or not record.rows:
        return None
    known = {row.number: row for row in record.rows}
    mixtures = [shown, *(mixture for mixture in record.mixtures if mixture is not shown)]
    named = [(_name(each, of), row) for of in mixtures for each in of.behaviours for row in each.examples]
    named += [("set aside", row) for row in record.worst]
    rows = tuple(
        Row((name, str(row), quoted(known[row].prompt or "", LONGEST_QUOTE), quoted(_text(known[row]), LONGEST_QUOTE)))
        for name, row in named
        if row in known
    )
    columns = (
        Column("behaviour"),
        Column("row", numeric=True),
        Column("prompt", fold=True),
        Column("answer", fold=True),
    )
    return Table(columns, rows, title="what they look like")


def _text(row: ScoredRow) -> str:
    return " … ".join(turn.text for turn in row.turns)
