"""`densepath diagnose`: the models and rows of an SFT run, and what is printed and written."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

from densepath.choice.decide import decide
from densepath.choice.inputs import Evidence, MeasurePlan, SFTModels
from densepath.choice.measure import measure
from densepath.config.choice import DiagnoseArguments
from densepath.config.judge import JudgeArguments
from densepath.data.outputs import check_outputs, models_read, rows_read
from densepath.data.sources import load_rows
from densepath.data.splits import content_hash
from densepath.data.training_rows import Rows, measured_rows
from densepath.errors import ConfigError, DataError
from densepath.evals.generation import Decoding
from densepath.evals.reward_eval import RewardTask, check_rows
from densepath.io import read_jsonl, write_json_atomic, write_text_atomic
from densepath.judging.against import AgainstAnswers, answers_by_prompt
from densepath.judging.build import CACHE, make_judge_against
from densepath.models.compat import check_same_tokenizer, weights_differ
from densepath.models.kept import KeptModels, kept_models
from densepath.models.load import load_frozen, load_tokenizer
from densepath.pipeline.data import (
    check_answers,
    check_demonstrations,
    check_prompts,
    check_right_answers,
    prompts_of_sft,
)
from densepath.progress import StageProgress
from densepath.records.choice import Criterion
from densepath.records.codec import to_json
from densepath.report.console import print_parts
from densepath.report.diagnosis import diagnosis_page, diagnosis_parts
from densepath.report.html import page_html
from densepath.terminal import Console, say, warn

DEFAULT_COMPLETION_LENGTH = 128


def run_diagnose_command(arguments: DiagnoseArguments, console: Console) -> dict[str, Any]:
    """Diagnose an SFT run; returns, prints and writes the record.

    Raises:
        DensepathError: a folder without an SFT run, or data or configuration that cannot be used.
    """
    run_dir = Path(arguments.run_dir)
    kept = kept_models(run_dir)
    split, own = arguments.dataset_train_split, (run_dir / name for name in ("config.yaml", "inputs.json"))
    check_outputs(
        {"output_file": arguments.output_file, "html_file": arguments.html_file},
        {
            "dataset_name": rows_read(arguments.dataset_name, split),
            "preference_dataset_name": rows_read(arguments.preference_dataset_name, split),
            "run_dir": [*own, *(run_dir / "data").glob("*"), *models_read(kept.sft, *kept.references.values())],
        },
    )
    models = _models(arguments, kept, console)
    evidence, length = _evidence(arguments, run_dir, kept, models, console)
    plan = MeasurePlan(
        betas=tuple(arguments.betas),
        num_generations=arguments.num_generations,
        max_completion_length=length,
        criterion=None if arguments.criterion == "auto" else Criterion(arguments.criterion),
        ensemble=arguments.ensemble,
        seed=arguments.seed,
        token_budget=arguments.token_budget,
    )
    with StageProgress(console, "diagnose", None, "completion") as progress:
        found = measure(models, evidence, plan, on_progress=lambda done, total: progress.update(done, total))
    if found.preferences_set_aside:
        warn(
            console,
            f"{arguments.preference_dataset_name}: {found.preferences_set_aside} rows set aside: equal twins, or "
            "longer than the context",
        )
    decision = decide(found)
    record = {
        "run_dir": arguments.run_dir,
        "dataset_name": evidence.source,
        "preference_dataset_name": arguments.preference_dataset_name,
        "max_completion_length": length,
        "num_generations": arguments.num_generations,
        "seed": arguments.seed,
        "paths": dict(models.references),
        "decision": to_json(decision),
        **to_json(found),
    }
    print_parts(console, *diagnosis_parts(found, decision))
    write_json_atomic(Path(arguments.output_file), record)
    if arguments.html_file is not None:
        recipe, asked = {**kept.recipe, "sft": kept.sft}, _asked(arguments, kept.recipe)
        page = diagnosis_page(found, decision, arguments.run_dir, evidence.source, recipe, asked)
        write_text_atomic(Path(arguments.html_file), page_html(page))
        say(console, f"page: {Path(arguments.html_file).resolve()}")
    say(console, f"figures: {Path(arguments.output_file).resolve()}")
    return record


def _models(arguments: DiagnoseArguments, kept: KeptModels, console: Console) -> SFTModels:
    """The SFT model and the references asked for, of one tokenizer."""
    trust = arguments.trust_remote_code
    tokenizer = load_tokenizer(kept.sft, **arguments.tokenizer_options())
    references = _chosen(kept.references, arguments.references)
    for name, path in references.items():
        check_same_tokenizer(tokenizer, load_tokenizer(path, trust_remote_code=trust), special_tokens=False)
        if not weights_differ(kept.sft, path):
            warn(console, f"reference {name} has the same weights as the SFT model: its reward is zero everywhere")
    return SFTModels(
        kept.sft, references, tokenizer, model_options={**arguments.model_options(), "device": arguments.device}
    )


def _evidence(
    arguments: DiagnoseArguments, run_dir: Path, kept: KeptModels, models: SFTModels, console: Console
) -> tuple[Evidence, int]:
    """Rows, verifier and preferences, and the longest completion in tokens; the recipe's where nothing was given."""
    recipe, split = kept.recipe, arguments.dataset_train_split
    asked = _judge_arguments(arguments, recipe)
    verifier = None if asked else arguments.verifier or recipe.get("verifier")
    length = arguments.max_completion_length or int(recipe.get("max_completion_length") or DEFAULT_COMPLETION_LENGTH)
    source, rows = _rows(arguments, run_dir, console, recipe)
    check_answers(verifier, rows, source, split)
    if asked is not None:
        check_right_answers(asked, rows, source, split)
    check_prompts(rows, models.tokenizer, models.context, length, source, split)
    check_demonstrations(rows, models.tokenizer, source, split)
    judged = asked is not None or verifier is not None
    measured = measured_rows(rows, models.tokenizer, models.context, judged=judged)
    if measured != rows:
        what = "all are asked as prompts alone" if judged else f"{len(rows) - len(measured)} of {len(rows)} left out"
        warn(console, f"{source}: demonstrations are longer than the context of {models.context} tokens: {what}")
    rows = measured
    checks = verifier if asked is None else _judge(asked, arguments, models, rows, length, console)
    return Evidence(rows, checks, _preferences(arguments), source), length


def _judge_arguments(arguments: DiagnoseArguments, recipe: dict[str, Any]) -> JudgeArguments | None:
    """How the judge is asked, where one is: the command's, else the recipe's if nothing else was given."""
    if arguments.judge is not None:
        return arguments
    if recipe.get("judge") is None or arguments.verifier is not None:
        return None
    return JudgeArguments(**{f.name: recipe[f.name] for f in fields(JudgeArguments) if f.name in recipe})


def _asked(arguments: DiagnoseArguments, recipe: dict[str, Any]) -> dict[str, Any]:
    """The check and the rows of this command, as they are typed: what says more than the defaults do."""
    judge = _judge_arguments(arguments, recipe)
    if judge is None:
        checks = {"verifier": arguments.verifier or recipe.get("verifier")}
    else:
        plain = JudgeArguments()
        said = {f.name: getattr(judge, f.name) for f in fields(JudgeArguments)}
        checks = {name: value for name, value in said.items() if value != getattr(plain, name)}
    split = {} if arguments.dataset_name is None else {"dataset_train_split": arguments.dataset_train_split}
    return {"dataset_name": arguments.dataset_name, **split, **checks}


def _judge(
    asked: JudgeArguments,
    arguments: DiagnoseArguments,
    models: SFTModels,
    rows: Rows,
    length: int,
    console: Console,
) -> AgainstAnswers:
    """The judge, against what the SFT model answers greedily."""
    say(console, f"SFT answers {len(rows)} prompts, which the judge compares with")
    fixed = answers_by_prompt(load_frozen(arguments, models.sft), models.tokenizer, rows, Decoding(0.0, length))
    return make_judge_against(asked, arguments, fixed, Path(arguments.output_file).parent / CACHE)


def _chosen(kept: dict[str, str], asked: list[str]) -> dict[str, str]:
    missing = [name for name in asked if name not in kept]
    if missing:
        raise ConfigError(f"references={missing[0]} was not kept by this run; there is {', '.join(kept)}")
    return {name: kept[name] for name in asked or kept}


def _rows(arguments: DiagnoseArguments, run_dir: Path, console: Console, recipe: dict[str, Any]) -> tuple[str, Rows]:
    """Validation rows and their name; test prompts of the run are refused, training prompts warned of."""
    own = run_dir / "data/validation.jsonl"
    if arguments.dataset_name is None and not own.is_file():
        raise ConfigError(f"dataset_name is missing: validation rows; {run_dir} holds no data/validation.jsonl")
    source = str(own) if arguments.dataset_name is None else arguments.dataset_name
    split = arguments.dataset_train_split
    rows = load_rows(source, split, "held-out prompts", limit=arguments.max_samples, seed=arguments.seed)
    hashes = [content_hash(row) for row in rows]
    file = run_dir / "data/test.jsonl"
    tested = {content_hash(row) for row in read_jsonl(file)} if file.is_file() else set()
    if shared := sum(one in tested for one in hashes):
        raise DataError(
            f"{source}: {shared} of {len(rows)} prompts are test prompts of this run ({file}); choose by validation "
            "rows, so that the test stays untouched"
        )
    demonstrations, trained = prompts_of_sft(run_dir, recipe)
    if shared := sum(one in trained for one in hashes):
        warn(console, f"{source}: {shared} of {len(rows)} prompts were trained on ({demonstrations})")
    if shared or source == demonstrations:
        warn(console, "the diagnosis is only honest on rows that SFT has not seen")
    return source, rows


def _preferences(arguments: DiagnoseArguments) -> Rows:
    source = arguments.preference_dataset_name
    if source is None:
        return []
    rows = load_rows(source, arguments.dataset_train_split, None, limit=None, seed=None)
    check_rows(rows, RewardTask.PREFERENCE, source)
    return random.Random(arguments.seed).sample(rows, min(arguments.max_samples, len(rows)))
