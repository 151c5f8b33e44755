"""Where a named model lies, and one line of English for each way in which it cannot be loaded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from transformers.utils.peft_utils import find_adapter_config_file

from densepath.errors import DensepathError, MissingFileError, ModelError
from densepath.io import read_json
from densepath.models import smollm2

ADAPTER_CONFIG = "adapter_config.json"
BASE_RECORD = "densepath_base.json"
"""Beside an adapter that densepath wrote: where its base lies, and what it is (`models.identity`)."""


def locate(name_or_path: str | Path) -> str:
    """What `from_pretrained` should be given: the absolute path of a folder that exists, or a hub id.

    What is loaded is written down (PEFT's `base_model_name_or_path`) and read again elsewhere.

    Args:
        name_or_path: the catalogue name `smollm2-135m-instruct`, a folder, or a hub id.

    Raises:
        MissingFileError: it is written like a path and is not there.
        ModelError: it is a file, not a folder, or a name that is neither a folder nor shaped like a hub id.
    """
    if str(name_or_path) == smollm2.NAME:
        return str(smollm2.model_folder().absolute())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.exists():
        raise ModelError(f"{name_or_path} is a file: give the folder that holds it")
    if isinstance(name_or_path, Path) or _written_like_a_path(name_or_path):
        raise MissingFileError(f"no such model folder: {name_or_path}")
    return name_or_path


def asks_the_hub(name: str) -> bool:
    """Whether a name is that of a model which is not on this machine: neither a folder, nor in the hub's cache."""
    if name == smollm2.NAME or Path(name).expanduser().exists() or _written_like_a_path(name):
        return False
    try:
        return not (constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(name, "config.json"), str))
    except HFValidationError:  # no hub id either, as loading it will say
        return False


def _written_like_a_path(name: str) -> bool:
    """Whether it cannot be a hub id, which is `name` or `owner/name`."""
    return (
        name.startswith((".", "/", "~"))
        or name.endswith("/")
        or name.count("/") > 1
        or os.sep in name.replace("/", "")
    )


def is_adapter(source: str) -> bool:
    """Whether the folder or hub repository holds a PEFT adapter."""
    if Path(source).is_dir():
        return (Path(source) / ADAPTER_CONFIG).is_file()
    try:
        return find_adapter_config_file(source) is not None
    except OSError:
        return False  # loading it will say what is wrong


def adapter_base(source: str) -> str:
    """Where the base model of an adapter lies; never a folder that is only called like it.

    A relative path is looked for from the adapter's folder upwards, not from the working directory. A base that moved
    together with its adapter is found where it lay as seen from there, and one out of the model cache by its name.

    Raises:
        ModelError: the adapter names no base, one that is not there, or one that is not what it was trained on.
    """
    file = find_adapter_config_file(source)
    try:
        base = json.loads(Path(str(file)).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{source}: its {ADAPTER_CONFIG} cannot be read: {error}") from error
    if not base:
        raise ModelError(f"{source}: its {ADAPTER_CONFIG} names no base model: load the base with adapter={source}")
    if Path(base).name == smollm2.NAME and not Path(base).is_dir():
        base = smollm2.NAME
    folder = Path(str(file)).parent
    try:
        known = read_json(folder / BASE_RECORD) if (folder / BASE_RECORD).is_file() else {}
    except ValueError as error:
        raise ModelError(f"{source}: its {BASE_RECORD} is damaged ({error}): copy the adapter again") from error
    remedy = f"load the base from where it is, with adapter={source}, or write its place into {ADAPTER_CONFIG}"
    return stored_model(base, folder, (f"{source}: its base model", remedy), known)


def stored_model(name: str, folder: Path, words: tuple[str, str], known: Mapping[str, Any]) -> str:
    """The model that a file names, whatever the working directory is.

    Args:
        name: as it was written: an absolute or relative path, a hub id, or the catalogue's name.
        folder: of the file that names it; a relative path is meant from there upwards.
        words: whose model it is, and what to do where it is not there, for messages.
        known: what `identity.record_base` wrote: `relative` path from the folder, and `identity`; may be empty.

    Raises:
        ModelError: it is not there, or it is another model.
    """
    what, remedy = words
    if name == smollm2.NAME:
        return locate(name)
    path = Path(name).expanduser()
    above = [folder.resolve(), *folder.resolve().parents]
    places = [path] if path.is_absolute() else [parent / path for parent in above]
    places += [folder / known["relative"]] if "relative" in known else []
    found = list(dict.fromkeys(str(place.resolve()) for place in places if place.is_dir()))
    reasons = {place: _other_model(place, known.get("identity") or {}) for place in found}
    for place, reason in reasons.items():
        if not reason:
            return place
    if found:
        raise ModelError(f"{what} {found[0]} is another model than it was ({reasons[found[0]]} changed): {remedy}")
    if path.is_absolute() or "relative" in known or _written_like_a_path(name):
        raise ModelError(f"{what} {name} is not there: {remedy}")
    if path.is_dir() and (not known.get("identity") or _other_model(str(path), known["identity"])):
        raise ModelError(f"{what} {name} would be the folder of that name here, which nothing says it is: {remedy}")
    return locate(name)


def _other_model(place: str, identity: Mapping[str, str]) -> str:
    """What tells the model at a place from the one that an identity says; empty where nothing does."""
    from densepath.models.identity import differences, model_identity

    if not identity:
        return ""
    return " and ".join(name for name in differences(identity, model_identity(place)) if "tokenizer" not in name)


def same_model(a: str | Path, b: str | Path) -> bool:
    """Whether two names lead to one model: the same folder by whatever path, or the same hub id."""
    places = [Path(locate(name)) for name in (a, b)]
    return places[0] == places[1] or (all(p.is_dir() for p in places) and places[0].resolve() == places[1].resolve())


def has_tokenizer(source: str) -> bool:
    """Whether a folder holds a tokenizer; True for a hub id, which loading will find out about."""
    folder = Path(source)
    if not folder.is_dir():
        return True
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    return any((folder / name).is_file() for name in names)


def check_model_folder(source: str) -> None:
    """Refuse a local folder that cannot hold a safetensors model; a hub id passes.

    Raises:
        ModelError: no config.json, or no safetensors weights.
    """
    folder = Path(source)
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        remedy = f"; {source}/{inside[-1]} has one" if inside else ": give the folder that save_pretrained wrote"
        raise ModelError(f"{source}: no config.json, so it is not a model folder{remedy}")
    if not any(folder.glob("*.safetensors")):
        pickled = any(folder.glob("pytorch_model*.bin"))
        raise ModelError(
            f"{source}: no *.safetensors weights"
            + (" (pickled .bin weights are not read): save them again as safetensors" if pickled else " in it")
        )


def check_adapter_folder(source: str) -> None:
    """Refuse what is not a PEFT adapter with safetensors weights; a hub id need only be an adapter.

    Raises:
        ModelError: no adapter_config.json, or no safetensors weights.
    """
    if not is_adapter(source):
        raise ModelError(f"{source}: no {ADAPTER_CONFIG}, so it is not a PEFT adapter")
    if Path(source).is_dir() and not (Path(source) / "adapter_model.safetensors").is_file():
        raise ModelError(f"{source}: no adapter_model.safetensors in it: save the adapter again as safetensors")


_LOADING = (OSError, ValueError, ImportError, RuntimeError, KeyError, ArithmeticError)


@contextlib.contextmanager
def explained(source: str, kind: str) -> Iterator[None]:
    """Turn whatever loading `source` raises into one `ModelError` of one line.

    Args:
        source: folder or hub id, as `locate` returned it.
        kind: "model", "tokenizer" or "adapter": what was being loaded.
    """
    try:
        yield
    except DensepathError:
        raise
    except (*_LOADING, safetensors.SafetensorError, StrictDataclassError) as error:
        raise ModelError(f"cannot load the {kind} {source}: {_reason(error, source)}") from error


def _reason(error: BaseException, source: str) -> str:
    """What went wrong and what to do about it, in one line."""
    causes = list(_chain(error))
    names = {type(cause).__name__ for cause in causes}
    text = " ".join(str(error).split())
    if any(isinstance(cause, MemoryError) for cause in causes):
        return "not enough memory"
    if any(isinstance(cause, safetensors.SafetensorError) for cause in causes):
        return f"its weights file is damaged ({text}): copy or download it again"
    if "trust_remote_code" in text:
        return "it brings Python code of its own: read it, then pass trust_remote_code=True"
    if not Path(source).is_dir():
        if "GatedRepoError" in names:
            return "access is restricted: accept its terms on the hub and log in with `hf auth login`"
        if names & {"RepositoryNotFoundError", "HFValidationError", "RevisionNotFoundError"}:
            return "no such folder, and no such model on the hub (or it is private: `hf auth login`)"
        if names & _OFFLINE or "offline" in text.lower() or "connect" in text.lower():
            return (
                "no such folder, and the hub cannot be reached: give a folder, or run once online so that it is cached"
            )
        if "safetensors" in text:
            return "it has no safetensors weights: convert them first (pickled weights are not read)"
    return text[:300] or type(error).__name__


_OFFLINE = {
    "ConnectError",
    "ConnectionError",
    "ConnectTimeout",
    "LocalEntryNotFoundError",
    "OfflineModeIsEnabled",
    "ProxyError",
    "ReadTimeout",
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
