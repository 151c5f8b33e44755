"""`densepath judge`: answers -> games -> figures -> page; each stage goes on where a kill left it.

judged/answers/NAME.jsonl    answers of each model that was asked, as densepath generate writes them
judged/judge_cache/          replies of an endpoint, none of which is paid for twice
judged/games.jsonl           every game, as soon as it was judged
judged/results.json          the figures, a record `Judged`
judged/report.html, .json    the page, and the record `JudgeReport` that it shows
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from densepath.config.judge import parse_judge
from densepath.config.judging import JudgeCommandArguments
from densepath.data.answers import answers_to, check_not_empty, read_answers, with_references
from densepath.data.benchmarks import read_benchmark
from densepath.data.gamed import in_published_order, is_published, read_gamed
from densepath.data.outputs import check_outputs, rows_read
from densepath.errors import ConfigError, DensepathError
from densepath.io import hold_lock, read_jsonl, remove, write_json_atomic
from densepath.judging.build import check_judge, make_judge, template_of
from densepath.judging.endpoint import call_parameters
from densepath.judging.game_log import GameLog
from densepath.judging.games import Match, PlannedGame, key_of, plan_games
from densepath.judging.identity import judge_identity
from densepath.judging.protocol import Judge
from densepath.pipeline.contestants import Contest, Contestant, Entries, contest, matches_of
from densepath.pipeline.generate import AnswerJob, answer_of, benchmark_prompts, lengths, write_answers
from densepath.pipeline.judge_report import check_colours, judge_report
from densepath.progress import StageProgress
from densepath.records.benchmark import Answer, BenchmarkRows, Question
from densepath.records.codec import to_json
from densepath.records.judged import Kappa
from densepath.records.judging import Game, Spending
from densepath.report.console import print_parts
from densepath.report.judged import judged_parts, spending_text, write_judged_page
from densepath.stats.agreement import cohens_kappa
from densepath.stats.judged import JudgedInputs, judged
from densepath.terminal import Console, say, warn

WRITTEN = ("games.jsonl", "results.json", "report.html", "report.json")
"""Files of the folder that are written over."""
HALF_WRITTEN = (
    *(f".{name}.*.tmp" for name in WRITTEN),
    *("judge_cache/.*.tmp", "judge_cache/*/.*.tmp"),
)
"""What a kill leaves of files that were being written; while the folder is locked, nobody writes them."""
WORD = "word "
"""What an answer that is not there yet is made of in a dry run: about a token."""


def run_judge_command(arguments: JudgeCommandArguments, console: Console) -> Path:
    """Judge models on a benchmark into `output_dir`; goes on after a kill, and prints the figures.

    Returns:
        The folder.

    Raises:
        DensepathError: data, models or settings that cannot be used. JudgeError: a judge that keeps failing.
    """
    folder = Path(arguments.output_dir)
    check_colours(arguments)
    found = read_benchmark(arguments.benchmark)
    read: dict[str, Sequence[str | Path]] = {
        "benchmark": rows_read(found.source),
        "models": [*arguments.models, *arguments.baseline],
        "gamed_file": rows_read(arguments.gamed_file),
        "reference_answers": rows_read(arguments.reference_answers),
    }
    check_outputs({f"{name} of output_dir": folder / name for name in WRITTEN}, read)
    everything = found.questions
    said = filter(None, (arguments.judge, arguments.second_judge))
    reads = any(parse_judge(each)[0] in ("openai", "local") for each in said)
    found = _first(found, arguments.max_samples)
    found = _referenced(found, arguments.reference_answers, reads)
    for note in found.notes:
        warn(console, note)
    entered = contest(arguments.models, arguments.baseline, Entries(found, everything, arguments.allow_empty))
    if arguments.second_judge is not None and not entered.baselines:
        raise ConfigError("second_judge compares pairs, and here answers are graded alone: give baseline")
    gamed = None if arguments.gamed_file is None else read_gamed(arguments.gamed_file)
    run = _Run(arguments, found, folder)
    early = run.early_judges()
    run.check_forms(matches_of(entered.answered(lambda who: _made_up(found, who, WORD)), found))
    if arguments.dry_run:
        _tell_plan(run, early, entered, console)
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    lock = hold_lock(folder / ".lock", f"{folder}: another densepath process works in this folder; wait for it")
    try:
        for half in (path for pattern in HALF_WRITTEN for path in folder.glob(pattern)):
            remove(half)
        entered = entered.answered(lambda who: run.ask(who, console))
        of_answers = tuple(note for who in entered.everyone for note in who.notes)
        for note in of_answers:
            warn(console, note)
        matches = matches_of(entered, found)
        judge = early.get(arguments.judge) or run.judge(arguments.judge)
        games = run.play(judge, arguments.judge, matches, console)
        second = _second(run, early.get(arguments.second_judge), judge.name, games, matches, console)
        answers = [each for who in entered.everyone for each in (who.answers or {}).values()]
        benchmark = found.benchmark
        notes = (*found.notes, *of_answers, *_gamed_notes(arguments.gamed_file, everything), *second.notes)
        given = JudgedInputs(
            benchmark.name, benchmark.table, judge.name, found.questions, answers, games, gamed, notes
        )
        figures = replace(judged(given), kappas=second.kappas)
        write_json_atomic(folder / "results.json", to_json(figures))
        print_parts(console, *judged_parts(figures))
        judges = (judge, *second.judges)
        for each in judges:
            say(console, f"{each.name}: {spending_text(each.spent)}")
        report = judge_report(arguments, figures, found, entered, matches, games)
        paths = write_judged_page(
            replace(report, spent=_together(each.spent for each in judges)), folder / "report.html"
        )
        say(console, f"results: {(folder / 'results.json').resolve()}")
        say(console, f"page: {paths.html.resolve()}")
        if second.failure is not None:
            raise second.failure
        return folder
    finally:
        lock.release()


def _first(found: BenchmarkRows, limit: int | None) -> BenchmarkRows:
    """The benchmark with its first questions alone, and a note where that leaves any out."""
    total = len(found.questions)
    if limit is None or limit >= total:
        return found
    note = f"max_samples={limit}: the first {limit} of {total} questions, and not all of {found.benchmark.name}"
    return replace(found, questions=found.questions[:limit], notes=(*found.notes, note))


def _referenced(found: BenchmarkRows, file: str | None, reads: bool) -> BenchmarkRows:
    """The benchmark with the right answers of a file, or with a note that its own stand beside the questions.

    Args:
        found: the benchmark.
        file: of right answers; None for none.
        reads: whether any judge reads questions; of what none is shown there is nothing to note.
    """
    shown = [each for each in found.questions if found.benchmark.shows_reference(each)]
    if file is not None:
        right = answers_to(shown, read_answers(file), file)
        check_not_empty(right, file, "give the right answer, or leave reference_answers out")
        return replace(found, questions=with_references(found.questions, right))
    if not (reads and shown and found.benchmark.referenced):
        return found
    note = (
        f"right answers are the notes that stand beside {found.benchmark.name}'s questions, where they do, and not "
        "the published ones: give reference_answers"
    )
    return replace(found, notes=(*found.notes, note))


@dataclass(frozen=True)
class _Run:
    """The stages of one benchmark in its folder."""

    arguments: JudgeCommandArguments
    found: BenchmarkRows
    folder: Path

    @property
    def num_answers(self) -> int:
        """Shown to the judge at once: two where there is a baseline."""
        return 1 if self.found.benchmark.mode == "single" and not self.arguments.baseline else 2

    @property
    def template(self) -> str:
        """Name of the benchmark's template."""
        return self.found.benchmark.templates["single" if self.num_answers == 1 else "pair"]

    def judge(self, said: str | None) -> Judge:
        """A judge by what the arguments call it."""
        cache = self.folder / "judge_cache"
        return make_judge(
            self.arguments,
            self.arguments,
            cache=cache,
            judge=said,
            num_answers=self.num_answers,
            benchmark=self.template,
        )

    def early_judges(self) -> dict[str | None, Judge]:
        """The judges that load no model; what is wrong with any is said before anyone answers or is paid."""
        said = [each for each in (self.arguments.judge, self.arguments.second_judge) if each is not None]
        for each in said:
            check_judge(self.arguments, each, self.num_answers, self.template)
        return {each: self.judge(each) for each in said if parse_judge(each)[0] in ("openai", "verifier")}

    def check_forms(self, matches: Sequence[Match]) -> None:
        """Refuse before anyone answers a question that a judge's template has no form for.

        Args:
            matches: with any answers.

        Raises:
            DataError: the first such question, or one without what the template names.
        """
        asked = {(match.question, match.request.follow_ups): match.request for match in matches}
        for said in filter(None, (self.arguments.judge, self.arguments.second_judge)):
            if (kind := parse_judge(said)[0]) in ("openai", "local"):
                template = template_of(self.arguments, kind, self.num_answers, self.template)
                for request in asked.values():
                    template.check(request)

    def identity(self, said: str) -> dict[str, Any]:
        """All that decides what a judge says of a request."""
        kind, _ = parse_judge(said)
        found: dict[str, Any] = {"judge": said}
        if kind in ("openai", "local"):
            template = template_of(self.arguments, kind, self.num_answers, self.template)
            found["template"] = asdict(template)
        if kind == "openai":  # what is sent: a parameter that is taken away by null is in no JSON of the given ones
            parameters = call_parameters(template, self.arguments.judge_parameters)
            return found | {"url": self.arguments.judge_base_url, "parameters": parameters}
        if kind != "verifier":
            found["dtype"] = self.arguments.dtype
        return found | {"model": judge_identity(said)}

    def answers_file(self, who: Contestant) -> Path:
        """Where the answers of a model that is asked lie."""
        return self.folder / "answers" / f"{who.name.replace('/', '--')}.jsonl"

    def ask(self, who: Contestant, console: Console) -> dict[str, Answer]:
        """The answers of a model, which is asked for those that are not there."""
        arguments, output = self.arguments.answering(who.source, who.name), self.answers_file(who)
        asked = benchmark_prompts(self.found, self.arguments.temperature, None)
        write_answers(AnswerJob(arguments, asked, self.found.source, "answers"), output, console, conclude=lengths)
        answers = [answer_of(row) for row in read_jsonl(output)]
        return {each.id: each for each in answers}

    def play(self, judge: Judge, said: str | None, matches: Sequence[Match], console: Console) -> list[Game]:
        """All games, of which those that are missing are judged."""
        arguments, identity = self.arguments, self.identity(str(said))
        planned = plan_games(matches, both_orders=arguments.judge_both_orders, repeats=arguments.judge_repeats)
        log = GameLog(self.folder / "games.jsonl")
        todo = log.missing(identity, planned)
        say(console, f"{judge.name}: {len(todo)} of {len(planned)} games to judge; {_estimate(judge, todo)}")
        with StageProgress(console, "judge", len(planned), "game") as progress:
            progress.start_at(len(planned) - len(todo))
            return log.play(
                judge, identity, planned, max_invalid=arguments.max_invalid, on_game=lambda: progress.advance()
            )


@dataclass(frozen=True)
class _Second:
    """What the second judge came to.

    Attributes:
        judges: the judge; none where none was asked for, or it could not be made.
        kappas: how far it agrees with the first.
        notes: what the figures lack.
        failure: what stopped it; the first one's figures are told all the same.
    """

    judges: tuple[Judge, ...] = ()
    kappas: tuple[Kappa, ...] = ()
    notes: tuple[str, ...] = ()
    failure: DensepathError | None = None


def _second(
    run: _Run, judge: Judge | None, first: str, games: Sequence[Game], matches: Sequence[Match], console: Console
) -> _Second:
    """The second judge on the games of the first, whose name is `first`; it is made where it is not there yet."""
    said = run.arguments.second_judge
    if said is None:
        return _Second()
    try:
        judge = judge or run.judge(said)
        theirs = run.play(judge, said, matches, console)
    except DensepathError as failure:
        note = f"second_judge={said} failed: how far the two judges agree is not known"
        return _Second(() if judge is None else (judge,), notes=(note,), failure=failure)
    return _Second((judge,), _agreement((first, judge.name), games, theirs))


def _estimate(judge: Judge, planned: Sequence[PlannedGame]) -> str:
    return spending_text(judge.estimate([each.request for each in planned]), expected=True)


def _together(spent: Iterable[Spending]) -> Spending:
    """What all judges took; of cost, what is known."""
    parts = list(spent)
    costs = [each.cost for each in parts if each.cost is not None]
    calls, cached = sum(each.calls for each in parts), sum(each.cached for each in parts)
    read, written = sum(each.prompt_tokens for each in parts), sum(each.completion_tokens for each in parts)
    return Spending(calls, cached, read, written, sum(costs) if costs else None)


def _tell_plan(run: _Run, judges: Mapping[str | None, Judge], entered: Contest, console: Console) -> None:
    """What the stages would take; an answer that is not there is taken as long as it may become."""
    longest = WORD * run.arguments.max_completion_length
    questions = run.found.questions

    def made_up(who: Contestant) -> Mapping[str, Answer]:
        turns = sum(len(each.turns) for each in questions)
        say(console, f"{who.name}: {turns} answers to generate, taken as {run.arguments.max_completion_length} tokens")
        return _made_up(run.found, who, longest)

    arguments = run.arguments
    matches = matches_of(entered.answered(made_up), run.found)
    planned = plan_games(matches, both_orders=arguments.judge_both_orders, repeats=arguments.judge_repeats)
    for said in (arguments.judge, *([arguments.second_judge] if arguments.second_judge else [])):
        what = _estimate(judges[said], planned) if said in judges else "they cost nothing"
        say(console, f"{said}: {len(planned)} games of {len(questions)} questions; {what}")


def _made_up(found: BenchmarkRows, who: Contestant, text: str) -> Mapping[str, Answer]:
    """The same answer of a model to every turn, and of no other model: equal requests would be paid for once."""
    return {
        each.id: Answer(each.id, who.name, (f"{who.name} {text}",) * len(each.turns), each.row)
        for each in found.questions
    }


def _agreement(names: tuple[str, str], games: Sequence[Game], others: Sequence[Game]) -> tuple[Kappa, ...]:
    """Cohen's kappa of two judges over the games that both judged: which answer is better, or neither."""
    theirs = {key_of(game): game.preference_of_model for game in others}
    both = [(game.preference_of_model, theirs.get(key_of(game)), game.question) for game in games]
    known = [(one, other, of) for one, other, of in both if one is not None and other is not None]
    if not known:
        return ()
    first, second = [_label(one) for one, _, _ in known], [_label(other) for _, other, _ in known]
    return (cohens_kappa(names, first, second, [of for _, _, of in known]),)


def _label(preference: float) -> str:
    """Win, tie or loss.

    >>> _label(0.7), _label(0.5), _label(0.2)
    ('win', 'tie', 'loss')
    """
    return "tie" if preference == 0.5 else "win" if preference > 0.5 else "loss"


def _gamed_notes(file: str | None, questions: Sequence[Question]) -> tuple[str, ...]:
    """What makes the rate with these gamed rows another one than the leaderboard's."""
    if file is None:
        return ()
    notes = []
    if not is_published(file):
        notes.append(f"{file} is not the published df_gamed.csv: its length-controlled rate is not the leaderboard's")
    if not in_published_order([each.turns[0] for each in questions]):
        notes.append(
            f"{file} gives difficulties by place, and the questions are not AlpacaEval's 805 in its order: the "
            "length-controlled rate may take those of other prompts"
        )
    return tuple(notes)
