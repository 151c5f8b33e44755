"""`densepath run`: a grid of one setting and one seed, whose stages are told one after the other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from densepath.config.options import check_required
from densepath.config.run import RunArguments, with_one_template
from densepath.errors import ConfigError
from densepath.evals.verifiers import get_verifier
from densepath.io import read_json, write_json_atomic, write_jsonl_atomic, write_text_atomic
from densepath.judging.build import check_judge
from densepath.methods import SFTRun, get_method
from densepath.methods._stage import dpr_config, sft_config
from densepath.models.compat import check_same_tokenizer, weights_differ
from densepath.models.identity import CARD
from densepath.models.kept import with_known_model
from densepath.models.load import load_tokenizer
from densepath.models.quantized import check_four_bit
from densepath.models.quiet import quiet_libraries
from densepath.pipeline.cells import prepare, run_cell
from densepath.pipeline.data import WRITTEN, check_sources, with_answer_budget
from densepath.pipeline.environment import environment
from densepath.pipeline.grid import Grid
from densepath.pipeline.plan import UNKNOWN_COMPLETION, plan_recipe, require_fit
from densepath.pipeline.purify import show_purification
from densepath.pipeline.recipe import MethodPlan, Setting, Variant
from densepath.pipeline.results import grid_results
from densepath.pipeline.run_folder import RunFolder, resolved
from densepath.pipeline.samples import grid_samples
from densepath.pipeline.selection import read_choice
from densepath.pipeline.sft import passes_said
from densepath.records.arm import Arm
from densepath.records.choice import strength_name
from densepath.records.codec import read_record, to_json
from densepath.records.results import Results
from densepath.report import write_report
from densepath.report.console import print_parts
from densepath.report.experiment_brief import experiment_parts, results_markdown
from densepath.terminal import Console, say, terminal
from densepath.trainers.model_card import with_comparison
from densepath.trainers.refusals import check_startable

_EVERY_STEP = "nothing: every step is logged, and FLOPs are summed over the log"
OWN_KEYS = {
    "sft_output_dir": "output_dir",
    "dpr_output_dir": "output_dir",
    "sft_max_length": "max_length",
    "sft_report_to": "report_to, which holds for every stage",
    "dpr_report_to": "report_to, which holds for every stage",
    "dpr_beta": "beta",
    "dpr_dense_reward": "dense_reward",
    "sft_logging_steps": _EVERY_STEP,
    "sft_logging_strategy": _EVERY_STEP,
    "dpr_num_train_epochs": "dpr_max_steps: prompts are drawn for as many steps",
    "dpr_logging_steps": _EVERY_STEP,
    "dpr_logging_strategy": _EVERY_STEP,
}
"""Arguments of TRL's configs that a run decides on, and what decides."""

MATCHED = ("purified_sft", "dpr", "dpr_capped")
"""Arms under test whose compute the control is given: the first of them that is there, which takes the most."""
BEFORE_ARMS = 3
"""Steps of a run before its arms: data, SFT, choice."""


def run_pipeline(
    arguments: RunArguments, others: dict[str, Any] | None = None, console: Console | None = None
) -> Path:
    """The whole job: data, SFT with references, choice of the reference, every arm with its evaluation, report.

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
    arguments, others = begin(arguments, others, console)
    setting = run_setting(arguments, others)
    run = RunFolder(Path(arguments.output_dir))
    try:
        run.open_config(resolved(arguments, others))
        if not (run / "environment.json").exists():
            date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            write_json_atomic(run / "environment.json", {"date": date, "versions": environment()})
        grid = Grid(run.path, [setting], [arguments.seed], flat=True)
        grid = prepared(run, grid, console)
        started, told = time.monotonic(), not run.is_done("arms")
        train_and_ask(grid, console, told=told)  # of what is done, the files are compared with what was written
        if told:
            found = _results(run, grid, setting)
            write_json_atomic(run / "results.json", to_json(found))
            _tell_on_cards(run.path, found)
            write_jsonl_atomic(run / "samples.jsonl", grid_samples(grid, grid.settings[0], arguments.seed))
            run.finish("arms", started)
        paths = write_report(run.path)
        show_results(run.path, console)
        say(console, f"report: {paths.html.resolve()}")
        return paths.html
    finally:
        run.close()


def begin(
    arguments: RunArguments, others: Mapping[str, Any] | None, console: Console
) -> tuple[RunArguments, dict[str, Any]]:
    """The recipe with what is the same for every stage settled, checked before the first; says what it is about.

    Raises:
        DensepathError: as `check_configuration`, or data whose lengths cannot be read.
    """
    arguments, keys = with_one_template(arguments, others)
    quiet_libraries()
    if arguments.num_threads is not None:
        torch.set_num_threads(arguments.num_threads)
    arguments = with_known_model(arguments)
    check_required(RunArguments, vars(arguments))
    check_sources(arguments, Path(arguments.output_dir), WRITTEN)
    check_configuration(arguments, keys)
    say(console, what_runs(arguments))
    return with_answer_budget(arguments, console), keys


def what_runs(arguments: RunArguments) -> str:
    """The models that a run begins with, its data, and where it goes."""
    given = SFTRun(Path(arguments.output_dir), arguments).given
    sft = "" if given is None else f", with the SFT model {given.sft}"
    return f"{arguments.model_name_or_path} on {arguments.dataset_name}{sft}, into {arguments.output_dir}"


def run_setting(arguments: RunArguments, others: Mapping[str, Any]) -> Setting:
    """The arms of a run, SFT among them. Continued SFT has the compute of the arm under test that takes the most.

    Raises:
        ConfigError: an arm that does not exist, or that needs what the recipe lacks.
    """
    names = [*([] if "sft" in arguments.arms else ["sft"]), *arguments.arms]
    plans = {}
    for name in names:
        try:
            method = get_method(name)
        except ConfigError as error:
            raise ConfigError(f"arms: {error}") from None
        keys = asdict(arguments)
        if method.matches:
            like = next((arm for arm in MATCHED if arm in names), None)
            keys |= {"budget": "samples"} if like is None else {"budget": arguments.continued_sft, "budget_of": like}
        own = method.arguments(**keys)
        plans[name] = MethodPlan(Arm(name, method.label, method.control), name, (Variant(name, own, dict(others)),))
    return Setting(arguments.dataset_name, arguments, dict(others), plans)


def prepared(run: RunFolder, grid: Grid, console: Console) -> Grid:
    """The grid with the arms that are left once SFT is done and the reference is chosen."""
    (setting,), (seed,) = grid.settings, grid.seeds
    steps = BEFORE_ARMS + len(setting.methods)
    job = grid.sft_job(setting, seed)
    if not run.is_done("data"):
        _check_reference_tokenizer(job.sft)
    prepare(run, job, console, str(steps))
    choice = read_choice(run.path)
    found, reason, names = choice.chosen, choice.reason, list(setting.methods)
    if found is not None:
        say(console, f"3/{steps} reference {found.reference}, {strength_name(found.beta, found.capped)}: {reason}")
        return _with_arms(grid, ["dpr_capped" if name == "dpr" else name for name in names]) if found.capped else grid
    gone = _without_reference(setting)
    say(console, f"3/{steps} reference: {_none_helps(reason, gone)}")
    return _with_arms(grid, [name for name in names if name not in gone])


def _with_arms(grid: Grid, names: Sequence[str]) -> Grid:
    """The grid of a run with these arms, each once."""
    (setting,) = grid.settings
    arguments = replace(setting.arguments, arms=list(dict.fromkeys(names)))
    return replace(grid, settings=[run_setting(arguments, setting.others)])


def _without_reference(setting: Setting) -> dict[str, str]:
    """Name -> label of the arms that mean nothing where no reference helps."""
    plans = setting.methods.values()
    return {plan.name: plan.arm.label for plan in plans if get_method(plan.method).needs_reference}


def _none_helps(reason: str, gone: Mapping[str, str]) -> str:
    """That no reference helps, why, and what that leaves out; a reason is one sentence or several.

    >>> _none_helps("The reward is zero.", {"dpr": "DPR"})
    'none helps: The reward is zero. Left out: DPR.'
    """
    return f"none helps: {reason.removesuffix('.')}. {_left_out(gone)}"


def _left_out(gone: Mapping[str, str]) -> str:
    return f"Left out: {', '.join(gone.values())}." if gone else "No arm needs one."


def train_and_ask(grid: Grid, console: Console, *, told: bool) -> None:
    """Every arm in its order, what has another's compute at the end; what is done is passed over."""
    (setting,), (seed,) = grid.settings, grid.seeds
    steps = BEFORE_ARMS + len(setting.methods)
    plans = sorted(setting.methods.values(), key=lambda plan: get_method(plan.method).matches)
    for number, plan in enumerate(plans, BEFORE_ARMS + 1):
        (variant,) = plan.variants
        cell = grid.job(setting, plan, variant, seed, ("validation", "test"))
        run_cell(cell, console, f"{number}/{steps} {plan.arm.label}")
        if told and not plan.arm.control:
            show_purification(cell.folder, console)


def _results(run: RunFolder, grid: Grid, asked: Setting) -> Results:
    """The grid's results, with what data, SFT and the choice say first, and which arms it left out."""
    found = grid_results(grid, read_json(run / "environment.json"))
    choice = read_choice(run.path)
    seen = (each["seen"] for each in read_json(run / "data.json").values() if "seen" in each)
    said = (*seen, *passes_said(run.path), *choice.warnings)
    if choice.chosen is None and (gone := _without_reference(asked)):
        said += (f"{_left_out(gone)} {choice.reason}",)
    (setting,) = found.settings
    return replace(found, settings=(replace(setting, warnings=said + setting.warnings),))


def _tell_on_cards(run_dir: Path, results: Results) -> None:
    """Put what was compared on the card of every model that the run left."""
    compared = results_markdown(results, level=4)
    for name in dict.fromkeys(["sft", *(arm.name for arm in results.methods)]):
        card = run_dir / name / "model" / CARD
        if card.exists():
            write_text_atomic(card, with_comparison(card.read_text(encoding="utf-8"), compared))


def show_results(run_dir: Path, console: Console) -> None:
    """Print the table of a run."""
    print_parts(console, *experiment_parts(read_record(Results, run_dir / "results.json"), console.width))


def check_configuration(arguments: RunArguments, others: Mapping[str, Any]) -> None:
    """Refuse before the first stage what a later one would refuse after an hour of training.

    Raises:
        ConfigError: a verifier that does not exist, a key or value that TRL's configs do not take, a package that is
            missing, a reference that a given SFT model does not have, or a plan that needs more than `gpu_memory`.
        ModelError: a quantisation that cannot be had here.
    """
    for key, own in OWN_KEYS.items():
        if key in others:
            raise ConfigError(f"{key} is not taken from a recipe; set {own}")
    if arguments.verifier is not None:
        get_verifier(arguments.verifier)
    check_judge(arguments)
    _check_before_sft(arguments)
    _check_given_reference(arguments)
    if arguments.load_in_4bit:
        check_four_bit()
    sft = sft_config(arguments, dict(others), Path(arguments.output_dir) / "sft")
    budget = arguments.max_completion_length or UNKNOWN_COMPLETION  # what the data ask for is not known yet
    dpr = dpr_config(replace(arguments, max_completion_length=budget), dict(others), Path("dpr"), beta=1.0)
    for prefix, config in (("sft", sft), ("dpr", dpr)):
        check_startable(config)
        if config.push_to_hub:
            raise ConfigError(
                f"{prefix}_push_to_hub is not taken from a recipe; set nothing: of the models that are trained, the "
                "one that you choose is uploaded with `hf upload`"
            )
    if arguments.gpu_memory is not None:
        require_fit(plan_recipe(arguments, others))


def _check_before_sft(arguments: RunArguments) -> None:
    """A model before SFT that is named beside the folder of an SFT run must be the one that this began with."""
    own = arguments.model_name_or_path
    before = own if arguments.sft_from is None else SFTRun(Path(arguments.output_dir), arguments).base
    if before != own and weights_differ(own, before):
        raise ConfigError(
            f"model_name_or_path={own} is not the model before the SFT of sft_from={arguments.sft_from}, which is "
            f"{before}: leave it out"
        )


def _check_given_reference(arguments: RunArguments) -> None:
    """A reference by its name must be one of those that are beside a given SFT model."""
    if arguments.gives_sft and arguments.reference != "auto":
        SFTRun(Path(arguments.output_dir), arguments).reference(arguments.reference)


def _check_reference_tokenizer(sft: SFTRun) -> None:
    """A reference given as a path must share the tokenizer: said before SFT rather than after it."""
    arguments = sft.arguments
    try:
        float(arguments.reference)
    except ValueError:
        if arguments.reference not in ("auto", "ema", *sft.references):
            tokenizer = load_tokenizer(arguments.model_name_or_path, **arguments.tokenizer_options())
            other = load_tokenizer(arguments.reference, trust_remote_code=arguments.trust_remote_code)
            check_same_tokenizer(tokenizer, other, special_tokens=False)
