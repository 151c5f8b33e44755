"""`densepath purify`: purified SFT for any SFT model, the model before it, and demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trl import SFTConfig

from densepath.config.coerce import coerce
from densepath.config.mixins import TEXT_TASKS
from densepath.config.run import RunArguments
from densepath.config.training import PurifyCommandArguments
from densepath.data.formats import dataset_fingerprint, row_order
from densepath.data.rows import has_prompt
from densepath.data.sources import load_rows, place
from densepath.data.splits import answered_hashes, check_disjoint, content_hash, hold_out_by_content
from densepath.data.training_rows import Rows
from densepath.errors import ConfigError, DataError
from densepath.evals.verifiers import get_verifier
from densepath.io import write_json_atomic, write_jsonl_atomic, write_text_atomic
from densepath.judging.build import check_judge, judge_inputs
from densepath.judging.identity import verifier_inputs
from densepath.methods import SFTRun, Stage, get_method
from densepath.methods._stage import sft_config
from densepath.methods.purified_sft import check_rows
from densepath.models.compat import check_same_tokenizer, weights_differ
from densepath.models.load import load_tokenizer, model_context
from densepath.pipeline.against_sft import answer_with_sft, check_of_run
from densepath.pipeline.data import (
    check_answers,
    check_demonstrations,
    check_prompts,
    check_right_answers,
    check_sources,
    fewer_text,
    with_answer_budget,
)
from densepath.pipeline.inputs import data_inputs, machine_inputs, model_inputs, places, template_inputs
from densepath.pipeline.run_folder import RunFolder
from densepath.pipeline.standalone import opened, push_model
from densepath.records.behaviours import Purification
from densepath.records.codec import read_record
from densepath.report.behaviours import purification_page, purification_parts
from densepath.report.console import print_parts
from densepath.report.html import page_html
from densepath.terminal import Console, say, warn
from densepath.trainers.processes import from_first
from densepath.trainers.trl_config import checked_values

WRITTEN = (
    *("data/train.jsonl", "data/validation.jsonl", "data.json"),
    *("kept.jsonl", "dropped.jsonl", "purification.json"),
)
"""Files of its folder that are written over."""
BATCH, SAVE_STEPS = 16, 20
"""Of each training, unless per_device_train_batch_size and save_steps are given."""
OWN_KEYS = {
    "max_steps": "purify_steps and purify_final_steps",
    "num_train_epochs": "purify_steps and purify_final_steps",
    "learning_rate": "purify_learning_rate",
    "loss_type": "purify_final_loss",
    "warmup_steps": "nothing: a twentieth of the steps of each training",
}
"""Arguments of `SFTConfig` that purification decides on, and what decides."""


def run_purify_command(arguments: PurifyCommandArguments, others: dict[str, Any], console: Console) -> Path:
    """Purified SFT into `output_dir`; goes on after a kill, and tells what it found.

    Args:
        arguments: of the command.
        others: keys of TRL's `SFTConfig`.
        console: where progress and the result go.

    Returns:
        Folder of the model to use: the trained one, or the SFT model where that is kept.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    check_sources(arguments, Path(arguments.output_dir), WRITTEN)
    asked, keys = _recipe(arguments, others)
    config = sft_config(asked, keys, Path(arguments.output_dir))
    _ = config.device  # several processes are joined when it is asked for
    recipe = from_first(lambda: with_answer_budget(asked, console))
    arguments = replace(arguments, max_completion_length=recipe.max_completion_length)
    with opened(config, arguments, others, console) as (folder, console):
        sft = SFTRun(folder.path, recipe)
        if from_first(lambda: folder.is_done("train")):
            say(console, f"{folder / 'purification.json'} is there already: nothing to do")
        else:
            from_first(lambda: _prepare(folder, sft, arguments, config, console))
            started = from_first(lambda: folder.begin("train"))
            quiet = {**keys, "sft_push_to_hub": False}  # it trains several models, of which the last is pushed
            stage = Stage(sft, folder.path, recipe, quiet, console, "purify", check=check_of_run(sft, recipe))
            train = get_method("purified_sft").train
            assert train is not None
            folder.finish("train", started, train(stage))
        if folder.writes:
            show_purification(folder.path, console)
            say(console, f"page: {_write_page(folder.path, arguments).resolve()}")
        model = folder / "model"
        if not model.exists():
            say(console, f"the SFT model is kept: {arguments.model_name_or_path}")
            return Path(arguments.model_name_or_path)
        say(console, f"model: {model.resolve()}")
        push_model(config, folder, console)
        return model


def _write_page(folder: Path, arguments: PurifyCommandArguments) -> Path:
    path = folder / "purification.html"
    facts = {
        "SFT model": arguments.model_name_or_path,
        "before SFT": arguments.ref_model_name_or_path,
        "demonstrations": arguments.dataset_name,
        "verifier": arguments.verifier or "none",
        "judge": arguments.judge or "none",
    }
    record = read_record(Purification, folder / "purification.json")
    page = purification_page(record, str(folder), [(name, str(value)) for name, value in facts.items()])
    write_text_atomic(path, page_html(page))
    return path


def show_purification(folder: Path, console: Console) -> None:
    """Print what purification found, if there was one in that folder."""
    path = folder / "purification.json"
    if path.exists():
        print_parts(console, *purification_parts(read_record(Purification, path)))


def _recipe(arguments: PurifyCommandArguments, others: Mapping[str, Any]) -> tuple[RunArguments, dict[str, Any]]:
    """The recipe of a run, and its `sft_*` keys; refuses what no training could begin with."""
    for key, own in OWN_KEYS.items():
        if key in others:
            raise ConfigError(f"{key} is not taken here; set {own}")
    rest = checked_values(SFTConfig, others)  # under the names that the user gave
    batch = coerce(rest.pop("per_device_train_batch_size", BATCH), int, "per_device_train_batch_size")
    save_steps = coerce(rest.pop("save_steps", SAVE_STEPS), int, "save_steps")
    recipe = arguments.recipe(batch, save_steps)
    keys = {f"sft_{key}": value for key, value in rest.items()}
    if arguments.verifier is not None:
        get_verifier(arguments.verifier)
    check_judge(recipe)
    return recipe, keys


def _prepare(folder: RunFolder, sft: SFTRun, arguments: PurifyCommandArguments, config: Any, console: Console) -> None:
    """Check models and rows, and write or compare what the work begins with, SFT's answers for a judge among it."""
    tokenizer = sft.tokenizer()
    before = load_tokenizer(sft.base, trust_remote_code=arguments.trust_remote_code)
    check_same_tokenizer(tokenizer, before, special_tokens=False)
    if not weights_differ(arguments.model_name_or_path, sft.base):
        raise ConfigError(
            f"{sft.base} and {arguments.model_name_or_path} have the same weights: the reward is zero; give the "
            "model before SFT as ref_model_name_or_path"
        )
    train, held_out, unused = _rows(arguments)
    check_rows(sft.arguments, train)
    sorted_from = origin = arguments.dataset_name, arguments.dataset_train_split
    if arguments.eval_dataset_name is not None:
        origin = arguments.eval_dataset_name, arguments.dataset_test_split
    origins = {"train": sorted_from, "validation": origin}
    check_disjoint(
        {"train": train, "validation": held_out}, list(origins), lambda part, row: place(*origins[part], row)
    )
    check_demonstrations(train, tokenizer, *sorted_from, limit=min(arguments.max_length or sft.context, sft.context))
    check_demonstrations(held_out, tokenizer, *origin)
    if arguments.verifier is not None or arguments.judge is not None:
        if not has_prompt(held_out[0]):
            raise DataError(f"{origin[0]}: plain text has no prompt to answer; give eval_dataset_name")
        check_answers(arguments.verifier, held_out, *origin)
        check_right_answers(arguments, held_out, *origin)
        context = model_context(arguments.model_name_or_path, arguments.trust_remote_code)
        check_prompts(held_out, tokenizer, context, sft.arguments.completion_tokens, *origin)
    models: dict[str, str | None] = {"model": arguments.model_name_or_path, "reference": sft.base}
    data = {"data": train, "held-out data": held_out}
    inputs = {**data_inputs(data), **model_inputs(models), **template_inputs(tokenizer), **machine_inputs(config)}
    checks = {**verifier_inputs(arguments.verifier), **judge_inputs(arguments)}
    doubt = folder.open_inputs({**inputs, **checks}, places(models))
    if doubt is not None:
        warn(console, doubt)
    record = {}
    for name, rows in (("train", train), ("validation", held_out)):
        write_jsonl_atomic(folder / f"data/{name}.jsonl", rows)
        record[name] = {"rows": len(rows), "sha256": dataset_fingerprint(rows)}
    write_json_atomic(folder / "data.json", record)
    told = f" ({unused} used nowhere: they share a prompt with these)" if unused else ""
    say(console, f"data: {len(train)} demonstrations to sort, {len(held_out)} rows held out{told}")
    if (fewer := fewer_text(arguments, "validation", len(held_out))) is not None:
        warn(console, fewer)
    if arguments.judge is not None and not folder.is_done("sft_answers"):
        answer_with_sft(folder, sft, console, "SFT answers what the judge will see", ("validation",))


def _rows(arguments: PurifyCommandArguments) -> tuple[Rows, Rows, int]:
    """Demonstrations to sort, in the order of their source unless some are drawn; rows held out; number of the others.

    A share of contents is not one of rows, and is made larger: what is beyond the count asked for is sorted too,
    unless it shares a prompt with what is held out.
    """
    drawn = arguments.max_train_samples is not None or arguments.dataset_name.endswith(TEXT_TASKS)
    rows = load_rows(
        arguments.dataset_name,
        arguments.dataset_train_split,
        "demonstrations",
        limit=arguments.max_train_samples,
        seed=arguments.seed if drawn else None,
    )
    count, unused = arguments.num_validation_samples, 0
    if arguments.eval_dataset_name is not None:
        answered = arguments.verifier is None and arguments.judge is None
        held_out = load_rows(
            arguments.eval_dataset_name,
            arguments.dataset_test_split,
            "demonstrations" if answered else "held-out prompts",
            limit=count,
            seed=arguments.seed,
        )
    else:
        share = min(0.1, 1.2 * count / len(rows) + 0.01)
        _, pool = hold_out_by_content(rows, share)  # of a sorted file the first of them would be of one kind
        drawn_out = set(row_order(len(pool), arguments.seed, count))
        held_out = [pool[number] for number in sorted(drawn_out)]
        beyond = [row for number, row in enumerate(pool) if number not in drawn_out]
        taken, asked = {one for row in held_out for one in answered_hashes(row)}, set(map(content_hash, held_out))
        shared = [row for row in beyond if content_hash(row) in taken or not asked.isdisjoint(answered_hashes(row))]
        aside = {id(row) for row in (*held_out, *shared)}
        rows, unused = [row for row in rows if id(row) not in aside], len(shared)
    if not rows:
        raise DataError(
            f"{arguments.dataset_name}: all {len(held_out) + unused} rows have a prompt in common, so that none is "
            "left to sort beside what is held out; give demonstrations of other prompts too, or eval_dataset_name"
        )
    return rows, held_out, unused
