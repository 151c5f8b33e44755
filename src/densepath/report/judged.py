"""What `densepath judge` found as a document: rates with their intervals, and the pairs to read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densepath import __version__
from densepath.io import read_json, write_json_atomic, write_text_atomic
from densepath.records.codec import from_json, to_json
from densepath.records.completion import Sample
from densepath.records.estimates import Interval, Verdict
from densepath.records.judge_report import JudgeReport, ShownPair
from densepath.records.judged import Judged, WinRate
from densepath.records.judging import Spending
from densepath.report.build import ReportPaths
from densepath.report.document import (
    Beside,
    Column,
    Document,
    Figure,
    Fold,
    Heading,
    Notice,
    Paragraph,
    Part,
    Row,
    Samples,
    Section,
    Table,
    present,
)
from densepath.report.drawings import Line, Lines, Outcome, Outcomes, Whisker, Whiskers
from densepath.report.html import page_html
from densepath.report.next_step import after_judging
from densepath.report.parse import clean
from densepath.report.verdict import GOES_BY_PLACE, place_warning
from densepath.report.words import DASH, Run, Words, count, interval, interval_text, number, share, verdict

_WHAT = {
    Verdict.BETTER: "{model} beats {baseline}",
    Verdict.WORSE: "{model} loses to {baseline}",
    Verdict.TIE: "No difference between {model} and {baseline} is shown",
}


def write_judged_page(report: JudgeReport, html: Path) -> ReportPaths:
    """Write the page and its twin beside it, each atomically.

    Raises:
        StorageError: writing failed.
    """
    paths = ReportPaths.of(html)
    page = page_html(judged_page(report))
    write_json_atomic(paths.json, to_json(report))
    write_text_atomic(paths.html, page)
    return paths


def is_judged(folder: Path) -> bool:
    """Whether `densepath judge` worked in that folder."""
    return (folder / "games.jsonl").is_file()


def rewrite_judged_page(folder: Path, html: Path | None = None) -> ReportPaths:
    """Make the page again, from its twin.

    Args:
        folder: of the judging.
        html: where the page goes; `report.html` of the folder if None.

    Raises:
        MissingFileError: judging has not ended. DataError: the twin holds no such record.
    """
    report = from_json(JudgeReport, read_json(folder / "report.json"))
    return write_judged_page(report, html or folder / "report.html")


def judged_parts(found: Judged) -> tuple[Part, ...]:
    """For a terminal of 80 columns: the verdict, the tables, and what a reader must know."""
    tables = (
        _brief_table(found),
        _alpaca_table(found),
        _arena_table(found, brief=True),
        _style_table(found),
        _grades_table(found),
        _pairwise_table(found),
    )
    return present([*tables, _kappa_table(found), _verdict(found)])


def judged_page(report: JudgeReport) -> Document:
    """The page."""
    found = report.judged
    facts = {
        "benchmark": found.benchmark,
        "questions": f"{found.prompts} of {report.source}",
        "judge": found.judge,
        "games": f"{count(report.games)}, of which {count(report.invalid)} without a verdict",
        "judging took": spending_text(report.spent),
        **{f"answers of {name}": source for name, source in report.models.items()},
    }
    sections = [
        Section("verdict", "", present([_verdict(found), _outcomes(found), _rates_table(found)]), link="Verdict"),
        *_own_figures(found),
        *_categories(found),
        *_lengths(report),
        *_trust(found),
        *_pairs(report),
    ]
    return Document(
        brand="densepath judge",
        title=f"{found.benchmark}: {', '.join(name for name in report.models)}",
        heading=_headline(found),
        facts=tuple((name, clean(str(value))) for name, value in facts.items()),
        sections=tuple(sections),
        footer=f"Written by densepath {__version__}. Figures of different judges cannot be compared.",
        next=after_judging(report),
    )


def spending_text(spent: Spending, *, expected: bool = False) -> str:
    """What judging took, or is expected to take, in words.

    >>> spending_text(Spending(calls=2, prompt_tokens=1500, completion_tokens=20, cost=0.5))
    '2 calls, 1,500 tokens read, 20 written, cost 0.5'
    >>> spending_text(Spending())
    'no call of an endpoint'
    """
    others = [f"{count(spent.cached)} replies were there already"] if spent.cached else []
    others += [f"{count(spent.shared)} requests are the same as others"] if spent.shared else []
    if not spent.calls:
        return ", ".join(others) or "no call of an endpoint"
    read, wrote = ("to read", "to write at most") if expected else ("read", "written")
    words = [f"{count(spent.calls)} calls", f"{count(spent.prompt_tokens)} tokens {read}"]
    unlimited = expected and not spent.completion_tokens
    words += ["replies of any length" if unlimited else f"{count(spent.completion_tokens)} {wrote}"]
    words += [f"cost {'about ' if expected else ''}{spent.cost:.3g}"] if spent.cost is not None else []
    return ", ".join([*words, *others])


# --- Verdict ---------------------------------------------------------------------------------------------------------


def _headline(found: Judged) -> str:
    shown = [rate for rate in found.win_rates if rate.verdict is not Verdict.TIE]
    if found.mt_bench and not found.win_rates:
        best = max(found.mt_bench, key=lambda each: each.mean.mean)
        return f"{best.model}: {best.mean.mean:.2f}"
    if not found.win_rates:
        return "Nothing was judged"
    if any(rate.position is not None and rate.position.decides for rate in found.win_rates):
        return GOES_BY_PLACE
    return _sentence(max(shown or found.win_rates, key=lambda rate: rate.rate.mean))


def _sentence(rate: WinRate) -> str:
    what = _WHAT[rate.verdict].format(model=rate.model, baseline=rate.baseline)
    return f"{what}: {share(rate.rate.mean)}"


def _verdict(found: Judged) -> Notice | None:
    """Every model in a sentence, and what a reader must know first."""
    lines: list[Words] = []
    for rate in found.win_rates:
        ends = f"[{share(rate.rate.low)}, {share(rate.rate.high)}]"
        seen = f"a rate of {share(0.5 + rate.detectable)} would be seen with a chance of 80 %"
        seen = seen if rate.detectable < 0.5 else "too few to see any difference"
        more = f"; {seen}" if rate.verdict is Verdict.TIE else ""
        lines.append(f"{_sentence(rate)} {ends} of {rate.rate.n} prompts{more}.")
        by_place = place_warning(rate.position, f"the prompts of {rate.model} against {rate.baseline}")
        lines += [by_place] if by_place is not None else []
        if rate.dropped:
            whose = f"{rate.dropped} prompts of {rate.model} against {rate.baseline}"
            lines.append(f"{whose} have no verdict and count in no figure.")
    lines += [f"{each.model}: {interval_text(each.mean, 2)} on average." for each in found.mt_bench]
    lines += list(found.notes)
    kinds = {rate.verdict.value for rate in found.win_rates}
    return Notice(f"{found.judge} says", tuple(lines), kinds.pop() if len(kinds) == 1 else "tie") if lines else None


def _outcomes(found: Judged) -> Figure | None:
    rows = []
    for rate in found.win_rates:
        total = rate.wins + rate.ties + rate.losses
        shares = (rate.wins / total, rate.ties / total, rate.losses / total)
        rows.append(Outcome(f"{rate.model} against {rate.baseline}", *shares, rate.rate))
    drawing = Outcomes(tuple(rows), "share of prompts")
    note = "Dot and line: the win rate, with a tie as one half, and its 95 % interval over prompts."
    return Figure("Wins, ties, losses", drawing, note) if rows else None


def _columns(first: str, *others: str) -> tuple[Column, ...]:
    return (Column(first, fold=True), *(Column(name, numeric=True) for name in others))


def _brief_table(found: Judged) -> Table | None:
    columns = (*_columns("model", "win rate", "won", "tied", "lost", "p"), Column(""))
    rows = [
        Row(
            (
                rate.model,
                interval_text(rate.rate),
                *map(str, (rate.wins, rate.ties, rate.losses)),
                number(rate.p_holm),
                rate.verdict.value,
            ),
            group=f"against {rate.baseline}",
        )
        for rate in found.win_rates
    ]
    return Table(columns, tuple(rows), found.benchmark) if rows else None


def _rates_table(found: Judged) -> Table | None:
    names = ("win rate", "won", "tied", "lost", "p", "detectable", "length", "shown first")
    columns = (*_columns("model", *names), Column("verdict"))
    rows = []
    for rate in found.win_rates:
        length = DASH if rate.length is None else interval(rate.length, 0, signed=True)
        first = DASH if rate.position is None else share(rate.position.first_place.mean)
        counts = (str(rate.wins), str(rate.ties), str(rate.losses), number(rate.p_holm))
        cells = (rate.model, interval(rate.rate), *counts, number(rate.detectable), length, first)
        rows.append(Row((*cells, verdict(rate.verdict.value)), group=f"against {rate.baseline}"))
    for one in found.comparisons:
        difference = (f"{one.measure} less {one.against}", interval(one.difference, signed=True))
        more = (DASH, DASH, DASH, number(one.p_holm), DASH, DASH, DASH, verdict(one.verdict.value))
        rows.append(
            Row((*difference, *more), group=f"between models against {one.baseline}, over the prompts of both")
        )
    caption = (
        "A tie is one half; both orders are averaged first. p is corrected by Holm for all models. Detectable: the "
        "distance from one half that as many prompts show with a power of 80 %. Length: characters more than the "
        "baseline. Shown first: mean preference for the first place."
    )
    return Table(columns, tuple(rows), caption=caption) if rows else None


# --- The benchmarks' own figures -------------------------------------------------------------------------------------


def _own_figures(found: Judged) -> tuple[Section, ...]:
    tables = (_alpaca_table(found), _arena_table(found), _style_table(found))
    parts = present([*tables, _grades_table(found), _pairwise_table(found)])
    words = (
        "As the benchmark computes them. They stand beside a leaderboard only with its judge, its published judge "
        "prompt, its order of the answers and all its prompts."
    )
    return (
        (Section("own", "The benchmark's own figures", (Paragraph(words, "muted"), *_titled(parts))),) if parts else ()
    )


def _titled(tables: Sequence[Part]) -> tuple[Part, ...]:
    """Tables with their titles as headings, as a page shows them."""
    return tuple(part for table in tables for part in (Heading(getattr(table, "title", "")), table))


def _alpaca_table(found: Judged) -> Table | None:
    columns = _columns("model", "win rate", "error", "discrete", "at equal length")
    rows = []
    for each in found.alpaca_eval:
        figures = (each.win_rate, each.standard_error, each.discrete_win_rate)
        equal = DASH
        if each.length is not None:  # the two fits are different figures: each says which it is
            equal = f"{each.length.name.removeprefix('length_')} {_percent(each.length.rate, 2)}"
        rows.append(Row((each.model, *(number(100 * value, ".2f") for value in figures), equal)))
    return Table(columns, tuple(rows), "AlpacaEval 2, percent") if rows else None


def _percent(rate: Interval | None, digits: int = 1) -> str:
    """`mean [low, high]` in percent, as the leaderboards print it.

    >>> _percent(Interval(0.5, 0.25, 1.0, 10)), _percent(None)
    ('50.0 [25.0, 100.0]', '–')
    """
    if rate is None:
        return DASH
    return interval_text(Interval(100 * rate.mean, 100 * rate.low, 100 * rate.high, rate.n), digits)


def _arena_table(found: Judged, *, brief: bool = False) -> Table | None:
    """Arena-Hard's figures; brief without its own interval and without the score's other form."""
    columns = _columns("model", "score", *(() if brief else ("published as", "Bradley-Terry")), "dropped")
    rows = []
    for each in found.arena_hard:
        published = f"[{100 * each.published_low:.1f}, {100 * each.published_high:.1f}]"
        also = () if brief else (published, _percent(each.bradley_terry))
        rows.append(
            Row((each.model, _percent(each.score), *also, str(each.dropped)), group=f"against {each.baseline}")
        )
    return Table(columns, tuple(rows), "Arena-Hard, percent") if rows else None


def _style_table(found: Judged) -> Table | None:
    """Arena-Hard's score with style held fixed: length alone, Markdown alone, and both."""
    names = ("model", "held fixed")
    rates = ("at mean style", "at equal style")
    columns = (*(Column(name, fold=True) for name in names), *(Column(name, numeric=True) for name in rates))
    rows = [
        Row(
            (each.model, _held(style.features), _percent(style.rate), _percent(style.equal_style)),
            group=f"against {each.baseline}",
        )
        for each in found.arena_hard
        for style in each.styles
    ]
    caption = (
        "Arena-Hard reads its style-controlled score at the mean style difference of all battles, with length and "
        "Markdown held fixed. At equal style both answers are as long and as marked up."
    )
    return Table(columns, tuple(rows), "Arena-Hard with style held fixed, percent", caption) if rows else None


def _held(features: Sequence[str]) -> str:
    """What is held fixed, in a word for headers, lists and bold together.

    >>> _held(("length",)), _held(("length", "headers", "lists", "bold"))
    ('length', 'length, Markdown')
    """
    markdown = ["Markdown"] if {"headers", "lists", "bold"} <= set(features) else []
    return ", ".join([*(name for name in features if name == "length"), *markdown])


def _grades_table(found: Judged) -> Table | None:
    turns = max((len(each.turns) for each in found.mt_bench), default=0)
    columns = _columns("model", "mean", *(f"turn {turn}" for turn in range(1, turns + 1)), "no grade")
    rows = []
    for each in found.mt_bench:
        by_turn = [interval_text(turn, 2) for turn in each.turns] + [DASH] * (turns - len(each.turns))
        rows.append(Row((each.model, interval_text(each.mean, 2), *by_turn, str(each.invalid))))
    return Table(columns, tuple(rows), "Grades") if rows else None


def _pairwise_table(found: Judged) -> Table | None:
    columns = _columns("model", "adjusted win rate", "won", "tied", "lost", "no verdict")
    rows = [
        Row(
            (each.model, interval_text(each.rate), *map(str, (each.wins, each.ties, each.losses, each.invalid))),
            group=f"against {each.baseline}",
        )
        for each in found.mt_bench_pairs
    ]
    return Table(columns, tuple(rows), "MT-Bench in pairs") if rows else None


# --- Categories, lengths, the judge ----------------------------------------------------------------------------------


def _categories(found: Judged) -> tuple[Section, ...]:
    figures = []
    for rate in found.win_rates:
        rows = tuple(Whisker(f"{name or 'none'} ({each.n})", each) for name, each in rate.categories.items())
        if rows:
            drawing = Whiskers(rows, "win rate", zero=0.5, limits=(0.0, 1.0))
            figures.append(Figure(f"{rate.model} against {rate.baseline}", drawing))
    for graded in found.mt_bench:
        rows = tuple(Whisker(f"{name} ({each.n})", each) for name, each in graded.categories.items() if name)
        if rows:
            figures.append(Figure(graded.model, Whiskers(rows, "grade")))
    return (Section("categories", "By category", (Beside(tuple(figures)),), link="Categories"),) if figures else ()


def _lengths(report: JudgeReport) -> tuple[Section, ...]:
    lines = tuple(
        Line(name, tuple(x for x, _ in points), tuple(y for _, y in points), group=group, dots=True)
        for group, (name, points) in enumerate(report.lengths.items())
        if points
    )
    if not lines:
        return ()
    labels = ("characters more than the baseline's answer", "preference for the model")
    drawing = Lines(lines, *labels, levels=((0.5, ""),), uprights=((0.0, ""),), limits=(-0.05, 1.05))
    words = "A judge that prefers the longer answer shows a slope here."
    return (Section("length", "Length against preference", (Figure("Every pair", drawing, words),), link="Length"),)


def _trust(found: Judged) -> tuple[Section, ...]:
    columns = _columns("model", "follows the place", "shown first", "of the judge", "of the prompts", "no verdict")
    rows = []
    for rate in found.win_rates:
        place, first = (
            (DASH, DASH)
            if rate.position is None
            else (interval(rate.position.follows_place), interval(rate.position.first_place))
        )
        own, prompts = (
            (DASH, DASH) if rate.noise is None else (number(rate.noise.of_judge), number(rate.noise.of_prompts))
        )
        cells = (rate.model, place, first, own, prompts, str(rate.invalid))
        rows.append(Row(cells, group=f"against {rate.baseline}"))
    caption = (
        "Follows the place: prompts at which the two orders prefer another answer. Of the judge, of the prompts: the "
        "two parts of the win rate's standard error, where each pair was judged several times."
    )
    table = Table(columns, tuple(rows), caption=caption) if rows else None
    parts = present([table, *_titled(present([_kappa_table(found)]))])
    return (Section("judge", "How far to trust the judge", parts, link="Judge"),) if parts else ()


def _kappa_table(found: Judged) -> Table | None:
    columns = _columns("judges", "agree", "kappa")
    rows = [
        Row((f"{each.first} and {each.second}", interval_text(each.agreement), interval_text(each.kappa)))
        for each in found.kappas
    ]
    title = "Agreement beyond chance, game by game (win, tie or loss)"
    return Table(columns, tuple(rows), title) if rows else None


# --- Pairs -----------------------------------------------------------------------------------------------------------


def _pairs(report: JudgeReport) -> tuple[Section, ...]:
    if not report.pairs:
        return ()
    coloured = [pair for pair in report.pairs if all(each.scored is not None for each in pair.answers)]
    plain = [pair for pair in report.pairs if pair not in coloured]
    samples = Samples(tuple(map(_sample, coloured)), {}) if coloured else None
    replies = [_replies(pair) for pair in coloured if pair.replies]
    words = "The highest and the lowest of each model. " + ("Colours: the dense reward." if coloured else "")
    parts = present([Paragraph(words.strip(), "muted"), samples, *replies, *map(_read, plain)])
    return (Section("pairs", "The most decisive answers", parts, link="Pairs"),)


def _title(pair: ShownPair) -> str:
    turn = f", turn {pair.turn}" if pair.turn > 1 else ""
    said = f"grade {number(pair.grade, '.2f')}" if pair.preference is None else f"preference {pair.preference:.2f}"
    return f"{pair.question}{turn}: {pair.answers[0].generator}, {said}"


def _sample(pair: ShownPair) -> Sample:
    answers = {each.generator: each.scored for each in pair.answers if each.scored is not None}
    return Sample(_title(pair), pair.prompt, None, pair.category or None, answers)


def _read(pair: ShownPair) -> Fold:
    """A pair without colours, side by side."""
    sides = tuple(
        Paragraph((Run(each.generator, "strong"), "\n", each.text or "(empty)"), "text") for each in pair.answers
    )
    asked = Paragraph((Run(pair.category, "tag"), " ", pair.prompt) if pair.category else pair.prompt, "text prompt")
    return Fold(_title(pair), present([asked, Beside(sides), _replies(pair) if pair.replies else None]))


def _replies(pair: ShownPair) -> Fold:
    texts: Sequence[str] = pair.replies
    return Fold(f"What the judge wrote of {_title(pair)}", tuple(Paragraph(text, "text") for text in texts))
