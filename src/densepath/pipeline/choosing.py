"""`densepath select`: which kept checkpoint of an SFT run makes the best reference."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

from densepath.config.choice import SelectArguments
from densepath.errors import ConfigError, MissingFileError
from densepath.evals.reference_choice import select_reference
from densepath.evals.reward_eval import RewardTask, check_rows
from densepath.io import read_json, write_json_atomic
from densepath.models import locate
from densepath.models.compat import check_same_tokenizer, weights_differ
from densepath.models.load import load_tokenizer
from densepath.pipeline.data import check_answers, load_rows
from densepath.pipeline.run_folder import INPUTS
from densepath.progress import StageProgress
from densepath.report.console import print_parts
from densepath.report.selection import selection_table
from densepath.terminal import Console, say, warn

BASE = "0"
"""Name of the model before SFT, as in a run's `reference`."""


def run_select_command(arguments: SelectArguments, console: Console) -> dict[str, Any]:
    """Compare the references of an SFT run; returns, prints (and writes) the record.

    Raises:
        DensepathError: a folder without an SFT run, or data or configuration that cannot be used.
    """
    sft, references, recipe = kept_references(Path(arguments.run_dir), include_base=arguments.include_base)
    tokenizer = load_tokenizer(sft, **arguments.tokenizer_options())
    for name, path in references.items():
        other = load_tokenizer(path, trust_remote_code=arguments.trust_remote_code)
        check_same_tokenizer(tokenizer, other, special_tokens=False)
        if not weights_differ(sft, path):
            warn(console, f"reference {name} has the same weights as the SFT model: its reward is zero everywhere")
    if recipe.get("dataset_name") == arguments.dataset_name:
        warn(console, f"{arguments.dataset_name} is what SFT was trained on: the reward is only honest on other rows")
    split = arguments.dataset_train_split
    rows = load_rows(arguments.dataset_name, split, "demonstrations", limit=arguments.max_samples, seed=arguments.seed)
    check_answers(arguments.verifier, rows, arguments.dataset_name, split)
    pairs = arguments.preference_dataset_name
    preferences = [] if pairs is None else load_rows(pairs, split, None, limit=None, seed=None)
    if pairs is not None:
        check_rows(preferences, RewardTask.PREFERENCE, pairs)
        drawn = min(arguments.max_samples, len(preferences))
        preferences = random.Random(arguments.seed).sample(preferences, drawn)
    with StageProgress(console, "select", None, "completion") as progress:
        record = select_reference(
            sft,
            references,
            rows,
            tokenizer=tokenizer,
            preferences=preferences,
            verifier=arguments.verifier,
            criterion=None if arguments.criterion == "auto" else arguments.criterion,
            num_generations=arguments.num_generations,
            max_completion_length=arguments.max_completion_length,
            ensemble=arguments.ensemble,
            seed=arguments.seed,
            token_budget=arguments.token_budget,
            dtype=arguments.dtype,
            device="auto",
            trust_remote_code=arguments.trust_remote_code,
            source=arguments.dataset_name,
            on_progress=lambda done, total: progress.update(done, total),
        )
    record = {
        "run_dir": arguments.run_dir,
        "dataset_name": arguments.dataset_name,
        "preference_dataset_name": pairs,
        "verifier": arguments.verifier,
        "rows": len(rows),
        "paths": references,
        **record,
    }
    if record["preferences_set_aside"]:
        warn(
            console,
            f"{pairs}: {record['preferences_set_aside']} rows set aside: equal twins, or longer than the context",
        )
    print_parts(console, selection_table(record))
    chosen = "none" if record["chosen"] is None else record["chosen"]
    say(console, f"chosen: {chosen}: {record['reason']}")
    for one in record["comparisons"]:
        low, high = one["difference"]["low"], one["difference"]["high"]
        say(
            console,
            f"{one['measure']} less {one['against']}: {one['difference']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]: "
            f"{one['verdict']}",
        )
    if arguments.output_file is not None:
        write_json_atomic(Path(arguments.output_file), record)
        say(console, f"figures: {Path(arguments.output_file).resolve()}")
    return record


def kept_references(run_dir: Path, *, include_base: bool) -> tuple[str, dict[str, str], dict[str, Any]]:
    """(SFT model, name -> reference by rising fraction, the run's recipe) of an SFT run's folder.

    Raises:
        MissingFileError: there is no SFT run in that folder.
        ConfigError: it kept no reference.
    """
    if not run_dir.is_dir():
        raise MissingFileError(f"{run_dir}: no such folder; give the output_dir of densepath sft or run")
    folder = run_dir / "sft" if (run_dir / "sft/model").is_dir() else run_dir
    if not (folder / "model").is_dir():
        raise MissingFileError(
            f"{run_dir}: no finished SFT run: neither model nor sft/model is there; give the output_dir of densepath "
            "sft or run"
        )
    config = run_dir / "config.yaml"
    recipe = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    found: dict[str, str] = {}
    if include_base and recipe.get("model_name_or_path"):
        found[BASE] = _base(run_dir, str(recipe["model_name_or_path"]))
    kept = folder / "references"
    if kept.is_dir():
        folders = [path for path in kept.iterdir() if (path / "config.json").is_file() or locate.is_adapter(str(path))]
        found |= {path.name: str(path) for path in sorted(folders, key=_order)}
    if not found:
        raise ConfigError(f"{run_dir}: SFT kept no reference; train with reference_fractions, such as 0.25 0.5 0.75")
    return str(folder / "model"), found, recipe


def _base(run_dir: Path, name: str) -> str:
    """The model before SFT, which the recipe names as it was typed: from the folder where the run was begun."""
    record = read_json(run_dir / INPUTS) if (run_dir / INPUTS).is_file() else {"inputs": {}, "places": {}}
    parts = {key.removeprefix("model "): each for key, each in record["inputs"].items() if key.startswith("model ")}
    where = record["places"].get("model", name)
    return locate.stored_model(
        where, run_dir, (f"{run_dir}: its model", "put it back where it was"), {"identity": parts}
    )


def _order(path: Path) -> tuple[float, str]:
    try:
        return float(path.name), path.name
    except ValueError:
        return float("inf"), path.name
