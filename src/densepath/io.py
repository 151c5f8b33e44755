"""Files that are either there whole or not there: atomic text, JSON and JSONL; hashes; a lock."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from densepath.errors import MissingFileError, StorageError

if TYPE_CHECKING:
    from filelock import FileLock

_SPACE = "free some space and run the same command again; what was written before is whole"
_RIGHTS = "give a place that you may write to"
_SECRET = re.compile(r"(^|[_.])(hub_token|hf_token|auth_token|access_token|api_key|password|secret)$", re.I)
UNWRITABLE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
}
"""What to do where the machine refuses to write, by `errno`."""


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends without an error.

    Raises:
        StorageError: writing failed (disk full, no permission); what stood at `path` before is intact.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        remedy = f"; {UNWRITABLE[error.errno]}" if error.errno in UNWRITABLE else ""
        raise StorageError(f"cannot write {path}: {error.strerror or error}{remedy}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def hold_lock(path: Path, busy: str, *, wait: bool = False) -> FileLock:
    """A lock that keeps other processes out until it is released, or this process ends, however it ends.

    Args:
        path: its file, which is made and stays.
        busy: what the error says where another process holds it.
        wait: wait for the other process instead.

    Raises:
        StorageError: another process holds it. OSError: the place cannot be written, or knows no locks.
    """
    from filelock import FileLock, Timeout  # takes as long to import as all that --help needs

    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except Timeout:
        raise StorageError(busy) from None
    return lock


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that a reader sees the old file or the new one, never half of it.

    Half a surrogate pair, which UTF-8 does not know, is written as its escape, which JSON reads back.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (`ValueError`)."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        MissingFileError: there is no such file.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None


def write_jsonl_atomic(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text_atomic(path, "".join(line + "\n" for line in lines))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; lines end at "\\n" alone, and a half-written last line is left out.

    A process that was killed may leave a last line without its end; every line before it is whole.
    """
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    rows: list[dict[str, Any]] = []
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number != len(lines) - 1:
                raise
    return rows


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_secret(name: str) -> bool:
    """Whether an argument of that name holds a password or token, which belongs into no file."""
    return _SECRET.search(name) is not None


def without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values but for those of secret names, in inner mappings too."""
    return {
        name: without_secrets(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if not is_secret(name)
    }
