"""What a saved model is, whatever its folder is called: digests of its weights, configuration and tokenizer."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from densepath.io import file_sha256, read_json, write_json_atomic
from densepath.models import locate

WHOLE_BYTES = 2**30
"""Weights up to this size are read whole; of larger files the header, and of each tensor four blocks."""
CARD = "README.md"
"""The card in a model's folder. It belongs to the user, who may change it: no marker holds what it says."""
_BLOCK = 4096
_BLOCKS = 4
_DIGITS = 16  # of a SHA-256, in hex: enough to tell two models apart, and short in a message
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "added_tokens.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
)
_PASSING = ("_name_or_path", "transformers_version", "peft_version", "base_model_name_or_path", "inference_mode")
"""Entries of a configuration that say nothing about the function that a model is."""


def model_identity(name_or_path: str | Path) -> dict[str, str]:
    """Digests of what a model is: `weights`, `config`, `tokenizer`; of an adapter those of its base too.

    Two folders with equal digests hold the same model. Weights of more than `WHOLE_BYTES` are sampled in every
    tensor, which any training changes; a single number that was changed by hand may be missed there.

    Args:
        name_or_path: what `load_model` takes. Of a hub id the files in the cache are read; none where it is not there.

    Raises:
        MissingFileError, ModelError: a folder that is not there, or an adapter without its base.
    """
    source = locate.locate(name_or_path)
    folder = _folder(source)
    if folder is None:
        return {}
    is_adapter = (folder / locate.ADAPTER_CONFIG).is_file()
    found = {"weights": _weights(folder), "config": _config(folder, is_adapter), "tokenizer": _tokenizer(folder)}
    if is_adapter:
        base = model_identity(locate.adapter_base(str(folder)))
        found |= {f"base {name}": digest for name, digest in base.items()}
    return {name: digest for name, digest in found.items() if digest}


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The names under which two identities differ; a name that only one of them has cannot be compared."""
    return [name for name in before if name in now and before[name] != now[name]]


def _folder(source: str) -> Path | None:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", locate.ADAPTER_CONFIG):
        try:
            found = try_to_load_from_cache(source, name)
        except ValueError:  # no name of the hub
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _weights(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    whole = sum(path.stat().st_size for path in files) <= WHOLE_BYTES
    return _joined(f"{path.name} {_file_digest(path, whole)}" for path in files)


def _config(folder: Path, is_adapter: bool) -> str:
    path = folder / (locate.ADAPTER_CONFIG if is_adapter else "config.json")
    if not path.is_file():
        return ""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return _file_digest(path, True)
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if key not in _PASSING and item is not None}
        if isinstance(value.get("target_modules"), list):  # a set that PEFT writes in any order
            value["target_modules"] = sorted(value["target_modules"])
    return _joined([json.dumps(value, sort_keys=True)])


def _tokenizer(folder: Path) -> str:
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    return _joined(f"{path.name} {_file_digest(path, True)}" for path in files)


def _joined(parts: Any) -> str:
    text = "\n".join(parts)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS] if text else ""


def _file_digest(path: Path, whole: bool) -> str:
    status = path.stat()
    return _digest(str(path.resolve()), status.st_size, status.st_mtime_ns, whole)


@functools.lru_cache(maxsize=256)
def _digest(path: str, size: int, changed: int, whole: bool) -> str:
    """Of a file as it is now: size and time only say when it has to be read again."""
    if whole:
        return file_sha256(Path(path))
    digest = hashlib.sha256(str(size).encode())
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        digest.update(header)
        for start, end in _spans(json.loads(header)):
            for index in range(_BLOCKS):
                file.seek(8 + length + start + (end - start) * index // _BLOCKS)
                digest.update(file.read(min(_BLOCK, end - start)))
    return digest.hexdigest()


def _spans(header: Mapping[str, Any]) -> Iterator[tuple[int, int]]:
    """Where each tensor of a safetensors file lies, in bytes behind its header."""
    for name in sorted(header):
        if name != "__metadata__":
            start, end = header[name]["data_offsets"]
            yield int(start), int(end)


# --- the base of an adapter ------------------------------------------------------------------------------------------


def record_base(folder: Path) -> None:
    """Make an adapter that was saved just now know its base by more than what was typed; anything else is left alone.

    `adapter_config.json` then names a base on disk by its absolute path, so that PEFT too loads it from any working
    directory. `densepath_base.json` beside it says where the base lies as seen from the adapter, for a folder that is
    moved with both, and its digests, by which `locate.adapter_base` refuses another model in its place.
    """
    path = folder / locate.ADAPTER_CONFIG
    if not path.is_file():
        return
    config = read_json(path)
    name = config.get("base_model_name_or_path")
    if not name:
        return
    record: dict[str, Any] = {"base": name}
    if Path(name).expanduser().is_dir():
        base = Path(name).expanduser().resolve()
        record = {"base": str(base), "relative": os.path.relpath(base, folder.resolve())}
        if name != str(base):
            write_json_atomic(path, {**config, "base_model_name_or_path": str(base)})
    elif Path(name).is_absolute():
        return  # it was moved away since it was loaded
    write_json_atomic(folder / locate.BASE_RECORD, {**record, "identity": model_identity(record["base"])})
