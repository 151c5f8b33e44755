"""What an SFT run keeps in its folder: the SFT model, its references, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from densepath.config.run import RunArguments
from densepath.errors import ConfigError, DamagedFileError, MissingFileError
from densepath.io import REMEDY, read_sealed_json, read_text
from densepath.models import locate, smollm2

INPUTS = "inputs.json"
"""What a training began with beside its configuration: digests of data and models, the number of processes."""
ASIDE = "damaged-"
"""Put before the name of a checkpoint that no longer holds what was written."""
BASE = "0"
"""Name of the model before SFT, as in a run's `reference`."""


@dataclass(frozen=True)
class KeptModels:
    """Paths of an SFT run's models, and its recipe."""

    sft: str
    references: dict[str, str]
    recipe: dict[str, Any]


def kept_models(run_dir: Path) -> KeptModels:
    """The models of an SFT run's folder: the references by rising fraction, the model before SFT as the first.

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
    recipe = _recipe(config) if config.is_file() else {}
    found: dict[str, str] = {}
    if recipe.get("model_name_or_path"):
        found[BASE] = _base(run_dir, str(recipe["model_name_or_path"]))
    kept = folder / "references"
    if kept.is_dir():
        folders = [path for path in kept.iterdir() if (path / "config.json").is_file() or locate.is_adapter(str(path))]
        found |= {path.name: str(path) for path in sorted(folders, key=_order)}
    if not found:
        raise ConfigError(f"{run_dir}: SFT kept no reference; train with reference_fractions, such as 0.25 0.5 0.75")
    return KeptModels(str(folder / "model"), found, recipe)


def with_model_before(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name: where `sft_from` is given and `model_name_or_path` is not, the model that it began with.

    Raises:
        MissingFileError, DamagedFileError, ConfigError: as `kept_models`.
    """
    if not given.get("sft_from") or given.get("model_name_or_path"):
        return dict(given)
    before = kept_models(Path(given["sft_from"]).expanduser()).references.get(BASE)
    return {**given, **({} if before is None else {"model_name_or_path": before})}


def with_known_model(arguments: RunArguments) -> RunArguments:
    """A recipe with the model before SFT that the folder of `sft_from` knows, where it names none itself.

    Raises:
        MissingFileError, DamagedFileError, ConfigError: as `kept_models`.
    """
    known = with_model_before(vars(arguments))
    return replace(arguments, model_name_or_path=known["model_name_or_path"])


def _recipe(config: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(read_text(config))
    except yaml.YAMLError as error:
        raise DamagedFileError(f"{config} is damaged ({' '.join(str(error).split())}): {REMEDY}") from None
    if not isinstance(recipe, dict):
        raise DamagedFileError(f"{config} is damaged, it holds no `key: value` lines: {REMEDY}")
    return recipe


def _base(run_dir: Path, name: str) -> str:
    """The model before SFT, which the recipe names as it was typed: from the folder where the run was begun.

    One of the catalogue is called by its name wherever it was converted to.
    """
    if name == smollm2.NAME:
        return name
    path = run_dir / INPUTS
    record = read_sealed_json(path, old=True) if path.is_file() else {"inputs": {}, "places": {}}
    try:
        parts = {
            key.removeprefix("model "): each for key, each in record["inputs"].items() if key.startswith("model ")
        }
        where = str(record["places"].get("model", name))
    except (KeyError, TypeError, AttributeError):
        raise DamagedFileError(f"{path} is damaged, it names no inputs: {REMEDY}") from None
    return locate.stored_model(
        where, run_dir, (f"{run_dir}: its model", "put it back where it was"), {"identity": parts}
    )


def _order(path: Path) -> tuple[float, str]:
    try:
        return float(path.name), path.name
    except ValueError:
        return float("inf"), path.name
