"""The trainings on their own: `densepath sft` and `densepath dpr`, for any model and data."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from trl import SFTConfig

from densepath.config.options import check_reference
from densepath.config.training import DPRArguments, PurifyCommandArguments, SFTArguments
from densepath.data.encode import encode_demonstrations
from densepath.data.formats import Needs
from densepath.data.rows import DataFormat, detect_format
from densepath.data.sources import load_rows, place
from densepath.data.splits import check_disjoint
from densepath.data.training_rows import Rows, demonstration_pairs, prompt_dataset
from densepath.errors import ConfigError, DataError, StorageError
from densepath.io import read_json, write_json_atomic, write_text_atomic
from densepath.methods._stage import train_shown
from densepath.methods.dpr import frozen_reference
from densepath.models.compat import check_same_tokenizer, weights_differ
from densepath.models.load import load_tokenizer, load_trainable, model_context
from densepath.models.quantized import check_four_bit
from densepath.pipeline.data import check_demonstrations, check_prompts
from densepath.pipeline.environment import environment, resident_bytes
from densepath.pipeline.inputs import data_inputs, machine_inputs, model_inputs, places, template_inputs
from densepath.pipeline.run_folder import RunFolder, resolved
from densepath.records.codec import to_json
from densepath.report.console import print_parts
from densepath.report.html import page_html
from densepath.report.profile import profile_page, profile_parts
from densepath.terminal import Console, say, terminal, warn
from densepath.trainers.dpr import DPRTrainer
from densepath.trainers.dpr_config import DPRConfig
from densepath.trainers.processes import from_first
from densepath.trainers.refusals import check_startable
from densepath.trainers.sft import save_model_atomic, sft_trainer
from densepath.trainers.step_clock import StepClock
from densepath.trainers.trl_config import QUIET, device_defaults, peft_config, trl_config

EVALUATION = {"eval_strategy": "steps", "eval_steps": 10, "predict_with_generate": False}
"""What `eval_dataset_name` sets: the NLL of its demonstrations every ten steps, without sampling."""
HELD_OUT_SEED = 1_000_000
"""Of the rows drawn from it, and of text_tasks: not one that a run trains on."""


@contextlib.contextmanager
def opened(
    config: Any,
    arguments: SFTArguments | DPRArguments | PurifyCommandArguments,
    others: dict[str, Any],
    console: Console,
) -> Iterator[tuple[RunFolder, Console]]:
    """The run folder with its configuration, and where to print: the first of several processes, then the others."""
    check_startable(config)
    if arguments.load_in_4bit:
        check_four_bit()
    _ = config.device  # several processes are joined when it is asked for
    process = int(config.process_index)
    folder = RunFolder(Path(arguments.output_dir), process=process)
    try:
        with config.main_process_first(local=False):
            folder.open_config(resolved(arguments, others))
        yield folder, console if process == 0 else terminal(quiet=True)
    finally:
        folder.close()


def _open_inputs(
    folder: RunFolder,
    config: Any,
    models: dict[str, str | None],
    tokenizer: Any,
    data: dict[str, Any],
    console: Console,
) -> None:
    """Write or compare what decides the result beside the configuration: the first process, then the others."""
    inputs = {**data_inputs(data), **model_inputs(models), **template_inputs(tokenizer), **machine_inputs(config)}
    with config.main_process_first(local=False):
        doubt = folder.open_inputs(inputs, places(models))
    if doubt is not None:
        warn(console, doubt)


def push_model(config: Any, folder: RunFolder, console: Console) -> None:
    """Upload `model`, its card and tokenizer to the hub if `push_to_hub` says so; the first process does.

    transformers pushes what a checkpoint holds (`hub_strategy`), and after the last step there is none. `pushed.json`
    says what was pushed where: it is not pushed again.

    Raises:
        StorageError: the hub does not take it.
        DamagedFileError: `pushed.json` cannot be read.
    """
    if not config.push_to_hub or not folder.writes:
        return
    model, name = folder / "model", config.hub_model_id or folder.path.absolute().name
    mark = folder / "pushed.json"
    pushed = {"to": name, "revision": config.hub_revision, "files": folder.files("train")}
    if mark.exists() and read_json(mark, "remove it to push the model again") == pushed:
        say(console, f"pushed to {name} before")
        return
    try:
        repo = HfApi().create_repo(name, private=config.hub_private_repo, exist_ok=True).repo_id
        HfApi().upload_folder(
            repo_id=repo, folder_path=model, commit_message="End of training", revision=config.hub_revision
        )
    except Exception as error:  # the hub's client has errors of its own, and passes on those of its transport
        reason = " ".join(str(error).split())
        raise StorageError(
            f"{model} is there, and could not be pushed to {name} ({reason}): the same command tries it again"
        ) from error
    write_json_atomic(mark, pushed)
    say(console, f"pushed to {repo}")


def _trained_before(config: Any, folder: RunFolder, console: Console) -> bool:
    done = (folder / "model").exists()
    if done:
        if not folder.is_done("train"):  # killed between the two
            folder.finish("train", folder.begin("train"))
        say(console, f"{folder / 'model'} is there already: nothing to do")
        push_model(config, folder, console)
    return done


def _rows(arguments: SFTArguments | DPRArguments, kind: Needs, seed: int) -> tuple[Rows, Any, int]:
    """Rows to train on, the tokenizer that reads them, and the model's context in tokens."""
    name, split = arguments.dataset_name, arguments.dataset_train_split
    tokenizer = load_tokenizer(arguments.model_name_or_path, **arguments.tokenizer_options())
    rows = load_rows(name, split, kind, limit=arguments.max_train_samples, seed=seed)
    return rows, tokenizer, model_context(arguments.model_name_or_path, arguments.trust_remote_code)


def _profiled(clock: StepClock, folder: RunFolder, arguments: DPRArguments, console: Console) -> None:
    """Write and print where the time of a step went."""
    profile = clock.profile(resident_bytes())
    if profile is None:
        warn(console, "profile: one step or none was made, and the first one is not counted")
        return
    print_parts(console, *profile_parts(profile))
    if not folder.writes:
        return
    write_json_atomic(folder / "profile.json", to_json(profile))
    given = {"model": arguments.model_name_or_path, "data": arguments.dataset_name, "machine": environment()["cpu"]}
    write_text_atomic(
        folder / "profile.html", page_html(profile_page(profile, tuple(given.items()), arguments.output_dir))
    )
    say(console, f"profile: {(folder / 'profile.html').resolve()}")


def _train(trainer: Any, tokenizer: Any, folder: RunFolder, console: Console, title: str) -> Path:
    """Train in a run folder of its own and leave the model in `model`."""
    started = from_first(lambda: folder.begin("train"))
    train_shown(trainer, folder.path, console, title)
    save_model_atomic(trainer, tokenizer, folder / "model", {"fraction": 1.0})
    folder.finish("train", started)
    say(console, f"model: {(folder / 'model').resolve()}")
    return folder / "model"


def run_sft_command(arguments: SFTArguments, others: dict[str, Any], console: Console) -> Path:
    """SFT into `output_dir/model`, references under `output_dir/references`; goes on after a kill.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    values = {**QUIET, **device_defaults(), **others, "output_dir": arguments.output_dir, "max_length": None}
    config = trl_config(SFTConfig, values)
    with opened(config, arguments, others, console) as (folder, console):
        if _trained_before(config, folder, console):
            return folder / "model"
        rows, tokenizer, context = _rows(arguments, "demonstrations", config.seed)
        limit = min(arguments.max_length or context, context)
        encoded, counts = encode_demonstrations(
            rows,
            tokenizer,
            limit,
            drop_overlong=True,
            source=arguments.dataset_name,
            where=functools.partial(place, arguments.dataset_name, arguments.dataset_train_split),
        )
        _open_inputs(folder, config, {"model": arguments.model_name_or_path}, tokenizer, {"data": encoded}, console)
        dropped = f"{counts.dropped} dropped (the prompt alone fills {limit} tokens)"
        say(console, f"{counts.rows} rows: {dropped}, {counts.truncated} cut there, without an end to learn")
        for note in counts.notes:
            warn(console, note)
        model = load_trainable(arguments, arguments.model_name_or_path)
        trainer = sft_trainer(
            model,
            tokenizer,
            encoded,
            config,
            peft_config=peft_config(arguments, model),
            reference_folder=folder / "references",
            fractions=arguments.reference_fractions,
            ema_decay=arguments.reference_ema_decay,
        )
        model_folder = _train(trainer, tokenizer, folder, console, "SFT")
        push_model(config, folder, console)
        return model_folder


def run_dpr_command(arguments: DPRArguments, others: dict[str, Any], console: Console) -> Path:
    """DPR into `output_dir/model`; goes on after a kill.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    evaluation = {} if arguments.eval_dataset_name is None else EVALUATION
    values = {**QUIET, **device_defaults(), **evaluation, **others, "output_dir": arguments.output_dir}
    config = trl_config(DPRConfig, values)
    with opened(config, arguments, others, console) as (folder, console):
        if _trained_before(config, folder, console):
            return folder / "model"
        if config.eval_strategy != "no" and arguments.eval_dataset_name is None:
            raise ConfigError("eval_strategy needs eval_dataset_name: held-out demonstrations")
        rows, tokenizer, context = _rows(arguments, "prompts", config.seed)
        origin = arguments.dataset_name, arguments.dataset_train_split
        check_prompts(rows, tokenizer, context, config.max_completion_length or 0, *origin)
        _check_reference(arguments, config.dense_reward, tokenizer, console)
        prompts, held_out = prompt_dataset(rows), _held_out(arguments, rows, tokenizer, context)
        references, second = arguments.ref_model_name_or_path, arguments.held_out_ref_model_name_or_path
        models = {"model": arguments.model_name_or_path, "held-out reference": second}
        models |= {f"reference {number}" if number else "reference": name for number, name in enumerate(references)}
        data = {"data": prompts, "held-out data": held_out}
        _open_inputs(folder, config, models, tokenizer, data, console)
        policy = load_trainable(arguments, arguments.model_name_or_path)
        trainer = DPRTrainer(
            model=policy,
            ref_model=[frozen_reference(policy, r, arguments, f"ref_{k}") for k, r in enumerate(references)] or None,
            held_out_ref_model=None if second is None else frozen_reference(policy, second, arguments, "held_out_ref"),
            args=config,
            train_dataset=prompts,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=peft_config(arguments, policy),
        )
        clock = StepClock(trainer) if arguments.profile else None
        model = _train(trainer, tokenizer, folder, console, "DPR")
        if clock is not None:
            _profiled(clock, folder, arguments, console)
        push_model(config, folder, console)
        return model


def _held_out(arguments: DPRArguments, train: Rows, tokenizer: Any, context: int) -> Any:
    """Demonstrations whose NLL is watched, or None."""
    name, split = arguments.eval_dataset_name, arguments.dataset_test_split
    if name is None:
        return None
    rows = load_rows(name, split, "demonstrations", limit=arguments.max_eval_samples, seed=HELD_OUT_SEED)
    if detect_format(rows[0]) is DataFormat.TEXT:
        raise DataError(f"{name}, row 1: plain text has no prompt and answer to measure; give prompt and completion")
    origins = {"train": (arguments.dataset_name, arguments.dataset_train_split), "held-out": (name, split)}
    check_disjoint({"train": train, "held-out": rows}, where=lambda part, row: place(*origins[part], row))
    check_demonstrations(rows, tokenizer, name, split)
    pairs = demonstration_pairs(rows, tokenizer, context)
    if not len(pairs):
        raise DataError(f"{name}: no held-out demonstration fits into the context of {context} tokens; shorten them")
    return pairs


def _check_reference(arguments: DPRArguments, dense_reward: str, tokenizer: Any, console: Console) -> None:
    """Refuse a missing or foreign reference, and warn of one that gives no signal."""
    check_reference(dense_reward, arguments.ref_model_name_or_path)
    for reference in arguments.ref_model_name_or_path:
        other = load_tokenizer(reference, trust_remote_code=arguments.trust_remote_code)
        check_same_tokenizer(tokenizer, other, special_tokens=False)
        if not weights_differ(arguments.model_name_or_path, reference):
            warn(console, f"{reference} and {arguments.model_name_or_path} have the same weights: the reward is zero")
