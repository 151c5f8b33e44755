"""`densepath run`: the stages in their order, each done once in a run folder."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from densepath.config.run import RunArguments, with_one_template
from densepath.errors import ConfigError
from densepath.evals.verifiers import get_verifier
from densepath.io import read_json, write_json_atomic
from densepath.models.compat import check_same_tokenizer
from densepath.models.load import load_tokenizer, model_context
from densepath.models.quiet import quiet_libraries
from densepath.pipeline.data import prepare_data
from densepath.pipeline.environment import environment
from densepath.pipeline.evaluation import run_evaluation
from densepath.pipeline.inputs import open_run_inputs
from densepath.pipeline.plan import plan_recipe, require_fit
from densepath.pipeline.run_folder import RunFolder, resolved
from densepath.pipeline.selection import read_choice, run_selection
from densepath.pipeline.training import (
    dpr_config,
    run_continued_sft,
    run_dpr,
    run_sft,
    sft_config,
)
from densepath.report import ReportPaths, results_table, write_report
from densepath.terminal import Console, say, show, terminal, warn
from densepath.trainers.refusals import check_startable

OWN_KEYS = {
    "sft_output_dir": "output_dir",
    "dpr_output_dir": "output_dir",
    "sft_max_length": "max_length",
    "dpr_beta": "beta",
    "dpr_dense_reward": "dense_reward",
    "sft_logging_steps": "nothing: every step is logged, and FLOPs are summed over the log",
    "dpr_logging_steps": "nothing: every step is logged, and FLOPs are summed over the log",
}
"""Arguments of TRL's configs that a run decides on, and what decides."""


def run_pipeline(
    arguments: RunArguments, others: dict[str, Any] | None = None, console: Console | None = None
) -> Path:
    """The whole job: data, SFT with references, choice of the reference, DPR, control, evaluation, report.

    Args:
        arguments: the recipe.
        others: `sft_*` and `dpr_*` keys for TRL's configs.
        console: where progress goes; standard output if None.

    Returns:
        Path of the HTML report.

    Raises:
        DensepathError: a user's mistake (data, model, configuration), or a failure with its place. What was written
            is whole, and the same call goes on from there.
    """
    console = console if console is not None else terminal()
    arguments, others = with_one_template(arguments, others)
    quiet_libraries()
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    check_configuration(arguments, others)
    run = RunFolder(Path(arguments.output_dir))
    try:
        run.open_config(resolved(arguments, others))
        if not (run / "environment.json").exists():
            date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            write_json_atomic(run / "environment.json", {"date": date, "versions": environment()})
        paths = _stages(run, arguments, others, console)
        show_results(run.path, console)
        say(console, f"report: {paths.html.resolve()}")
        return paths.html
    finally:
        run.close()


def _stages(run: RunFolder, arguments: RunArguments, others: dict[str, Any], console: Console) -> ReportPaths:
    context = model_context(arguments.model_name_or_path, arguments.trust_remote_code)
    open_run_inputs(run, arguments, console)
    if not run.is_done("data"):
        tokenizer = load_tokenizer(arguments.model_name_or_path, **arguments.tokenizer_options())
        _check_reference_tokenizer(arguments, tokenizer)
        prepare_data(run, arguments, tokenizer, context)
    rows = read_json(run / "data.json")
    counts = ", ".join(f"{record['rows']} {name}" for name, record in rows.items())
    say(console, f"1/6 data: {counts} rows{_left_out(rows['train'])}")
    for note in rows["train"].get("notes", []):
        warn(console, note)
    if not run.is_done("sft"):
        _do(run_sft, run, arguments, others, console, "2/6 SFT", context)
    if not run.is_done("selection"):
        _do(run_selection, run, arguments, console, "3/6 choose the reference")
    choice = read_choice(run)
    found, reason = choice.chosen, choice.reason
    if found is None:
        say(console, f"3/6 reference: none helps: {reason}. DPR is left out.")
    else:
        text = f"reference {found.reference}, beta {found.beta:g}: {reason}"
        say(console, f"3/6 {text}")
        if not run.is_done("dpr"):
            _do(
                run_dpr,
                run,
                arguments,
                others,
                console,
                "4/6 DPR",
                context,
                reference=found.reference,
                beta=found.beta,
            )
        if arguments.continued_sft != "none" and not run.is_done("continued_sft"):
            _do(run_continued_sft, run, arguments, others, console, "5/6 continued SFT", context)
    if not run.is_done("eval"):
        _do(run_evaluation, run, arguments, console, "6/6 evaluation")
    return write_report(run.path)


def _do(stage: Callable[..., None], *args: Any, **kwargs: Any) -> None:
    """Run a stage, then free what it held: trainers are reference cycles around a model and its optimizer."""
    stage(*args, **kwargs)
    gc.collect()


def show_results(run_dir: Path, console: Console) -> None:
    """Print the table of a run."""
    results = read_json(run_dir / "eval/results.json")
    show(console, results_table(results))
    for warning in results["warnings"]:
        warn(console, warning)


def check_configuration(arguments: RunArguments, others: Mapping[str, Any]) -> None:
    """Refuse before the first stage what a later one would refuse after an hour of training.

    Raises:
        ConfigError: a verifier that does not exist, a key or value that TRL's configs do not take, a package that is
            missing, or a plan that needs more than `gpu_memory`.
    """
    for key, own in OWN_KEYS.items():
        if key in others:
            raise ConfigError(f"{key} is not taken from a recipe; set {own}")
    if arguments.verifier is not None:
        get_verifier(arguments.verifier)
    check_startable(sft_config(arguments, dict(others), Path(arguments.output_dir) / "sft"))
    check_startable(dpr_config(arguments, dict(others), Path(arguments.output_dir) / "dpr", beta=1.0))
    if arguments.gpu_memory is not None:
        require_fit(plan_recipe(arguments, others))


def _left_out(train: Mapping[str, Any]) -> str:
    """What became of training rows that are too long, if there are any."""
    notes = (
        ("truncated", "cut to max_length"),
        ("dropped", "left out of SFT: the prompt fills max_length"),
        ("unsampled", "left out of DPR: the prompt is too long"),
    )
    found = [f"{train[name]} {text}" for name, text in notes if train.get(name)]
    return f" ({'; '.join(found)})" if found else ""


def _check_reference_tokenizer(arguments: RunArguments, tokenizer: Any) -> None:
    """A reference given as a path must share the tokenizer: said before SFT rather than after it."""
    try:
        float(arguments.reference)
    except ValueError:
        if arguments.reference != "auto":
            check_same_tokenizer(tokenizer, load_tokenizer(arguments.reference), special_tokens=False)
