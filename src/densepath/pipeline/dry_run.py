"""`densepath run --dry_run`: what a run would do, and whether each of its stages works, with nothing left behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.text import Text

from densepath.config.judge import parse_judge
from densepath.config.run import PURIFICATIONS, RunArguments, RunCommandArguments
from densepath.data.encode import encode_demonstration
from densepath.data.spans import decode_spans
from densepath.errors import ConfigError, DataError, ModelError
from densepath.judging.against import prompt_key
from densepath.judging.build import CACHE, make_judge_against
from densepath.methods import SFTRun
from densepath.models.load import load_tokenizer
from densepath.pipeline.data import prepare_data, tell_data
from densepath.pipeline.grid import Grid
from densepath.pipeline.judge import WORD
from densepath.pipeline.plan import plan_recipe
from densepath.pipeline.recipe import Setting
from densepath.pipeline.run import begin, prepared, run_pipeline, run_setting, train_and_ask
from densepath.pipeline.run_folder import RunFolder, resolved
from densepath.pipeline.selection import answers_for_the_choice, candidate_betas, candidate_references, settled
from densepath.planning.table import headline, plan_table, verdict
from densepath.report.judged import spending_text
from densepath.report.text import visible
from densepath.terminal import Console, say, show, terminal

SHOWN_ROWS = 3
HELD_OUT = 4
"""Prompts of each held-out split in the stages that are tried."""
SFT_BATCHES = 4
"""Demonstrations that they are tried on, in batches of SFT; at least `FEWEST`."""
FEWEST = 64
TRAINED, CONTEXT = "green", "dim"
"""Styles of tokens that are trained on, and of those before them."""


def run_run_command(arguments: RunCommandArguments, others: dict[str, Any], console: Console) -> Path | None:
    """`densepath run`: the whole job, or a look at it; path of the report, None after a look.

    Raises:
        DensepathError: as `run_pipeline`.
    """
    recipe = RunArguments(**{f.name: getattr(arguments, f.name) for f in fields(RunArguments)})
    if not arguments.dry_run:
        return run_pipeline(recipe, others, console)
    dry_run(recipe, others, console)
    return None


def dry_run(arguments: RunArguments, others: Mapping[str, Any], console: Console) -> None:
    """Show the configuration, the data with the tokens of its first rows, and the plan; then try each stage.

    Each stage makes one step on a few rows, in a folder beside `output_dir` that is removed. No judge is asked: what
    it will be asked, and what that costs, is told. No tracker is told anything.

    Raises:
        DensepathError: what would stop the run.
    """
    arguments, others = begin(arguments, others, console)
    _show_configuration(arguments, others, console)
    with _scratch(Path(arguments.output_dir)) as folder:
        _show_data(arguments, folder / "data", console)
        try:
            plan = plan_recipe(arguments, others)
        except (ConfigError, ModelError) as error:  # the stages tell what would stop a run
            say(console, f"no memory plan: {error}")
        else:
            say(console, headline(plan))
            show(console, plan_table(plan))
            say(console, verdict(plan))
        _show_judging(run_setting(arguments, others), folder / "data", console)
        _try_stages(arguments, dict(others), folder / "stages", console)
    say(console, f"every stage works; nothing was left behind, and {arguments.output_dir} is as it was")


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A folder on the disk that the run will write to, removed in the end."""
    place = next(
        folder
        for folder in (output.expanduser().absolute(), *output.expanduser().absolute().parents)
        if folder.is_dir()
    )
    with tempfile.TemporaryDirectory(prefix=".densepath-dry-run-", dir=place) as folder:
        yield Path(folder)


def _show_configuration(arguments: RunArguments, others: Mapping[str, Any], console: Console) -> None:
    """What differs from the defaults."""
    defaults = resolved(RunArguments(), {})
    say(console, "configuration, where it is not the default:", style="bold")
    for key, value in resolved(arguments, others).items():
        if key not in defaults or value != defaults[key]:
            say(console, f"  {key}: {value}")


def _show_data(arguments: RunArguments, folder: Path, console: Console) -> None:
    """The data stage as the run would do it, and the first rows token by token."""
    run = RunFolder(folder)
    try:
        sft = SFTRun(folder, arguments)
        source = sft.base if sft.given is None else sft.given.sft
        tokenizer = load_tokenizer(source, **arguments.tokenizer_options())
        prepare_data(run, arguments, tokenizer, sft.context)
        tell_data(run, console, "")
        limit = min(arguments.max_length or sft.context, sft.context)
        bar = "│" if console.encoding.startswith("utf") else "|"
        shown = 0
        for number, row in enumerate(sft.rows("train"), start=1):
            try:
                found = encode_demonstration(row, tokenizer, limit)
            except DataError:  # too long a prompt, which SFT leaves out: rows that cannot be read were refused
                continue
            show(console, tokens_text(f"row {number}", found["input_ids"], found["completion_mask"], tokenizer, bar))
            shown += 1
            if shown == SHOWN_ROWS:
                break
    finally:
        run.close()


def _show_judging(setting: Setting, folder: Path, console: Console) -> None:
    """What the judge of a run would take, with made-up answers as long as they may become; nothing without a judge.

    Args:
        setting: the run's.
        folder: where the data stage has written.
        console: where it is told.
    """
    arguments = setting.arguments
    if arguments.judge is None:
        return
    if parse_judge(arguments.judge)[0] not in ("openai", "verifier"):
        say(console, f"{arguments.judge} judges here: no call of an endpoint")  # its model need not be loaded for that
        return
    job = Grid(folder, [setting], [arguments.seed], flat=True).sft_job(setting, arguments.seed)
    every = len(setting.methods) * len(arguments.eval_temperatures) - 1  # what SFT says greedily is what it is against
    each = {"validation": every + answers_for_the_choice(job.sft, capped=job.capped), "test": every}
    asked = [
        (row, number) for split, answers in each.items() for row in job.sft.rows(split) for number in range(answers)
    ]
    text = WORD * arguments.completion_tokens
    fixed = {prompt_key(row): text for row, _ in asked}
    against = make_judge_against(arguments, arguments, fixed, Path(arguments.output_dir) / CACHE)
    found = against.estimate([f"{number} {text}" for _, number in asked], [row for row, _ in asked])
    prompts = " and ".join(f"{len(job.sft.rows(split))} {split}" for split in each)
    sorts = {*PURIFICATIONS}.intersection(setting.methods)
    also = "; what purified SFT asks beside is not counted" if sorts else ""
    say(
        console,
        f"{arguments.judge}: about {found.games} games of {prompts} prompts; "
        f"{spending_text(found.spending, expected=True)}{also}",
    )


def tokens_text(title: str, ids: list[int], mask: list[int], tokenizer: Any, bar: str = "│") -> Text:
    """A demonstration as SFT reads it: what stands before an answer dim, tokens that are trained on green, a bar each.

    Args:
        title: what it begins with.
        ids: of the whole demonstration.
        mask: 1 where a token is trained on.
        tokenizer: that made the ids.
        bar: what stands between tokens that are trained on.
    """
    text = Text(f"{title}: {len(ids)} tokens, trained on {sum(mask)} of them (between bars)\n", style="bold")
    place, inside = 0, False
    for piece, run in decode_spans(ids, tokenizer):
        trained = bool(mask[place])
        text.append(bar if trained or inside else "", style="not bold")
        text.append(visible(piece), style=f"not bold {TRAINED if trained else CONTEXT}")
        place, inside = place + len(run), trained
    return text.append(bar if inside else "", style="not bold")


def _try_stages(arguments: RunArguments, others: dict[str, Any], folder: Path, console: Console) -> None:
    """One step of every training of the recipe, and a few answers; each with its seconds, loading included."""
    short = _shortened(arguments, folder)
    quiet = terminal(quiet=True)
    run = RunFolder(folder)
    try:
        run.open_config(resolved(short, others))
        grid = Grid(run.path, [run_setting(short, others)], [short.seed], flat=True)
        started = time.monotonic()
        prepared(run, grid, quiet)
        say(console, f"SFT and the choice of the reference: tried, {time.monotonic() - started:.1f} s")
        sft = grid.sft(grid.settings[0], short.seed)
        first = candidate_references(sft)[0], candidate_betas(short)[0]
        fixed = settled(short, run.path) or replace(short, reference=first[0], beta=str(first[1]))
        for name, plan in run_setting(fixed, others).methods.items():
            started = time.monotonic()
            alone = replace(fixed, arms=[name])
            setting = run_setting(alone, others)
            kept = {key: value for key, value in setting.methods.items() if key == name}
            train_and_ask(replace(grid, settings=[replace(setting, methods=kept)]), quiet, told=False)
            say(console, f"{plan.arm.label}: tried, {time.monotonic() - started:.1f} s")
    finally:
        run.close()


def accepted(completion: str, row: Mapping[str, Any]) -> float:
    """A verifier that accepts every answer: what a look has in the place of a judge."""
    return 1.0


def _shortened(arguments: RunArguments, folder: Path) -> RunArguments:
    """The recipe with one step of each stage on a few rows; without a tracker and a memory limit.

    A judge is not asked: a program that accepts all answers says in its place that something does.
    """
    given = arguments.sft_from is not None or arguments.sft_model_name_or_path is not None
    rows = max(FEWEST, SFT_BATCHES * arguments.sft_per_device_train_batch_size)
    return replace(
        arguments,
        output_dir=str(folder),
        sft_max_steps=None if given else 1,
        sft_num_train_epochs=None,
        dpr_max_steps=1,
        purify_steps=1,
        purify_final_steps=1,
        purify_samples=HELD_OUT,
        continued_sft="samples",
        save_steps=1,
        max_train_samples=min(rows, arguments.max_train_samples or rows),
        num_validation_samples=min(HELD_OUT, arguments.num_validation_samples),
        num_test_samples=min(HELD_OUT, arguments.num_test_samples),
        eval_temperatures=arguments.eval_temperatures[:1],
        num_report_samples=1,
        judge=None,
        verifier=arguments.verifier if arguments.judge is None else f"{__name__}:{accepted.__name__}",
        report_to=["none"],
        gpu_memory=None,
    )
