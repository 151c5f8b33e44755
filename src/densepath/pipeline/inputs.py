"""What decides a training's result and stands in no configuration: the content of models and data, and the processes.

It is written into the run folder before the first step (`RunFolder.open_inputs`). A training that goes on after a kill
compares: with other rows, another model under the same name, or another number of processes (hence other batches) it
would silently end somewhere else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from densepath.config.run import RunArguments
from densepath.data.formats import dataset_fingerprint
from densepath.data.rows import canonical_json
from densepath.errors import DensepathError, ResumeError
from densepath.io import read_json
from densepath.judging.build import judge_inputs
from densepath.judging.identity import verifier_inputs
from densepath.methods import SFTRun
from densepath.models import locate, smollm2
from densepath.models.identity import model_identity
from densepath.models.kept import BASE
from densepath.models.load import load_tokenizer
from densepath.pipeline.data import split_fingerprints
from densepath.pipeline.run_folder import RunFolder
from densepath.terminal import Console, warn
from densepath.trainers.trl_config import device_defaults

_DIGITS = 16  # of a SHA-256, in hex


def model_inputs(models: Mapping[str, str | None]) -> dict[str, str]:
    """`model weights` -> digest and the like for each role; roles without a model are left out."""
    return {
        f"{role} {part}": digest
        for role, name in models.items()
        if name is not None
        for part, digest in model_identity(name).items()
    }


def data_inputs(data: Mapping[str, Iterable[Mapping[str, Any]] | None]) -> dict[str, str]:
    """`data` -> number and digest of the rows that are used, in their order; what is None is left out."""
    found = {}
    for name, rows in data.items():
        if rows is not None:
            listed = list(rows)
            found[name] = f"{len(listed)} rows, {dataset_fingerprint(listed)[:_DIGITS]}"
    return found


def template_inputs(tokenizer: Any) -> dict[str, str]:
    """`chat template` -> digest of its text, which a file outside of the model may give; none without one."""
    text = canonical_json(tokenizer.chat_template or "")
    return {"chat template": hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]} if tokenizer.chat_template else {}


def machine_inputs(config: Any) -> dict[str, Any]:
    """What a trainer's config finds on the machine: the number of processes, and whether it computes in bf16."""
    return {"processes": int(config.world_size), "bf16": bool(config.bf16)}


def places(models: Mapping[str, str | None]) -> dict[str, str]:
    """Where each model lies: an absolute path, a hub id, or a name of the catalogue."""
    named = {role: name for role, name in models.items() if name is not None}
    return {role: name if name == smollm2.NAME else locate.locate(name) for role, name in named.items()}


def open_run_inputs(run: RunFolder, sft: SFTRun, console: Console) -> None:
    """Write or compare what decides a run's result beside its recipe; stored rows are compared with their source.

    Raises:
        ResumeError: another model, verifier or judge, or other rows, than what was trained on; the message shows
            each difference.
    """
    arguments = sft.arguments
    models: dict[str, str | None] = {"model": sft.base, "SFT model": sft.given.sft if sft.given else None}
    checkpoints = {} if sft.given is None else sft.given.references
    models |= {f"reference {name}": path for name, path in checkpoints.items() if name != BASE}
    if not is_kept(arguments.reference) and arguments.reference not in checkpoints:
        models["reference"] = arguments.reference
    checks = {**verifier_inputs(arguments.verifier), **judge_inputs(arguments)}
    inputs = {**model_inputs(models), **_given_template(arguments), **checks, **_precision()}
    doubt = run.open_inputs(inputs, places(models))
    if doubt is not None:
        warn(console, doubt)
    if not run.is_done("data"):
        return
    stored = read_json(run / "data.json")
    try:
        now = split_fingerprints(arguments)
    except DensepathError as error:
        warn(console, f"the run goes on with the rows that it stored; their source cannot be compared: {error}")
        return
    changed = [
        f"{name}: {record['rows']} rows, {record['sha256'][:_DIGITS]} -> {now[name][0]} rows, {now[name][1][:_DIGITS]}"
        for name, record in stored.items()
        if name in now and record["sha256"] != now[name][1]
    ]
    if changed and not run.start_again():
        raise ResumeError(
            f"{run.path} holds a run on other rows than {arguments.dataset_name} gives now ({'; '.join(changed)}): "
            "undo the change to go on with it, or give another output_dir"
        )


def is_kept(reference: str) -> bool:
    """Whether a run keeps the reference itself: `auto`, `ema` and fractions, alone or with commas between them."""
    names = [name.strip() for name in reference.split(",")]
    return all(name in ("auto", "ema") or name.replace(".", "", 1).isdigit() for name in names)


def _given_template(arguments: RunArguments) -> dict[str, str]:
    """Of a chat template that a file of its own gives; a stage that needs one which is gone says so itself."""
    if arguments.chat_template_path is None:
        return {}
    try:
        return template_inputs(load_tokenizer(arguments.model_name_or_path, **arguments.tokenizer_options()))
    except DensepathError:
        return {}


def _precision() -> dict[str, Any]:
    return {"bf16": device_defaults()["bf16"]}
