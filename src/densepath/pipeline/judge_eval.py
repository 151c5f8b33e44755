"""`densepath judge-eval`: is the judge any good?"""

from __future__ import annotations

from pathlib import Path

from densepath.config.judge_eval import JudgeEvalArguments
from densepath.data.outputs import check_outputs, rows_read
from densepath.data.sources import load_rows
from densepath.io import write_json_atomic, write_text_atomic
from densepath.judging.build import make_judge, shows_reference
from densepath.judging.evaluation import evaluate_judge, labelled_pairs
from densepath.judging.games import plan_games, play
from densepath.pipeline.reward_eval import print_set_aside
from densepath.progress import StageProgress
from densepath.records.codec import to_json
from densepath.records.judge_eval import JudgeEvaluation
from densepath.report.console import print_parts
from densepath.report.html import page_html
from densepath.report.judge_eval import judge_eval_page, judge_eval_parts
from densepath.report.judged import spending_text
from densepath.terminal import Console, say


def run_judge_eval_command(arguments: JudgeEvalArguments, console: Console) -> JudgeEvaluation | None:
    """Print how well a judge agrees with labels; returns and writes the record, or None for a dry run.

    Called again it asks an endpoint nothing that was paid for: its replies are kept.

    Raises:
        DensepathError: data, judge or configuration that cannot be used, or a judge that keeps failing.
    """
    source, output = arguments.dataset_name, Path(arguments.output_file)
    check_outputs(
        {"output_file": output, "html_file": arguments.html_file},
        {"dataset_name": rows_read(source, arguments.dataset_train_split)},
    )
    rows = load_rows(source, arguments.dataset_train_split, None, limit=None, seed=None)
    shows = shows_reference(arguments)
    pairs, set_aside = labelled_pairs(
        rows, source, max_samples=arguments.max_samples, seed=arguments.seed, shows_reference=shows
    )
    judge = make_judge(arguments, arguments, cache=output.parent / "judge_cache")
    planned = plan_games(
        [pair.match for pair in pairs], both_orders=arguments.judge_both_orders, repeats=arguments.judge_repeats
    )
    if arguments.dry_run:
        needed = spending_text(judge.estimate([game.request for game in planned]), expected=True)
        say(console, f"{len(planned)} judgements of {len(pairs)} pairs: {needed}")
        return None
    games = []
    with StageProgress(console, "judge-eval", len(planned), "judgement") as progress:
        for game in play(judge, planned, max_invalid=arguments.max_invalid):
            games.append(game)
            progress.update(len(games), len(planned))
    found = evaluate_judge(judge.name, pairs, games, seed=arguments.seed, set_aside=set_aside)
    print_set_aside(found.set_aside, source, console)
    print_parts(console, *judge_eval_parts(found))
    say(console, found.interval, style="dim")
    write_json_atomic(output, {"dataset_name": source, **to_json(found)})
    say(console, f"figures: {output.resolve()}")
    if arguments.html_file is not None:
        page = Path(arguments.html_file)
        write_text_atomic(page, page_html(judge_eval_page(found, source)))
        say(console, f"page: {page.resolve()}")
    return found
