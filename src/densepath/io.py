"""Files and folders that are whole or not there, after a power cut too: atomic text, JSON, JSONL; hashes; a lock.

What is *done* passes through here: a file is synced before it takes its name, the folder that holds the name after it,
and both before anything that it replaces is removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from densepath.errors import DamagedFileError, DamageWarning, MissingFileError, StorageError

_SPACE = "free some space and run the same command again; what was written before is whole"
_RIGHTS = "give a place that you may write to"
_DEVICE = "look at the disk or the network; what was written before is whole"
_SECRET = re.compile(
    r"^token$|(^|[_.])((hub|hf|auth|access|api|bearer|refresh)_?token|(api|access|secret|private)_?key|password|passwd"
    r"|secret|credentials?|authorization)$",
    re.I,
)
_SECRET_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\b(sk-|ghp_|github_pat_|glpat-|xox[abp]-)[A-Za-z0-9_-]{16,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
"""Tokens of hubs and endpoints by their form, and the name and password of an address."""
HIDDEN = "(hidden)"
UNWRITABLE = {
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SPACE,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EROFS: _RIGHTS,
    errno.EIO: _DEVICE,
    errno.ESTALE: _DEVICE,
}
"""What to do where the machine refuses to write, by `errno`."""
_GONE = "its folder was removed meanwhile: run the same command again"
_WITHOUT_SYNC = (errno.EINVAL, errno.ENOTSUP)
"""What a file system answers that has no order of its own for names: a folder on it cannot be synced."""
REMEDY = "put a whole copy in its place, or remove it and run the same command again"
LOCKS = "DENSEPATH_LOCKS"
"""Environment variable: `off` where a file system knows no locks, and one process alone works in a folder."""
_SYNCED_AT_ONCE = 8
"""Files that are synced side by side: they share the commits of a journal, which take longer than their bytes."""


# --- done means synced -----------------------------------------------------------------------------------------------


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, on the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _WITHOUT_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Sync every file and every folder under `folder`, and `folder` itself."""
    folders = [Path(place) for place, _, _ in os.walk(folder)]
    files = [path for place in folders for path in place.iterdir() if path.is_file() and not path.is_symlink()]
    _sync_all(files)
    _sync_all(folders)


def _sync_all(paths: Iterable[Path]) -> None:
    with ThreadPoolExecutor(_SYNCED_AT_ONCE) as pool:
        list(pool.map(sync, paths))


def sync_name(path: Path) -> None:
    """Sync the name of a file or folder that a library made, and those of the folders above it."""
    for folder in path.absolute().parents:
        with contextlib.suppress(OSError):  # one that may not be read is none that was made here
            sync(folder)


_named: set[Path] = set()
"""Folders whose names this process has synced. One that it finds may be of a process that was killed before it did."""


def make_folder(path: Path) -> None:
    """Make a folder with those above it; the names of all that are new, or may be, are synced."""
    chain = [path.absolute(), *path.absolute().parents]
    new = chain[: next((index for index, each in enumerate(chain) if each.is_dir()), len(chain))]
    path.mkdir(parents=True, exist_ok=True)
    for each in reversed(new):
        sync(each.parent)
    for each in chain[len(new) :]:
        if each not in _named:
            with contextlib.suppress(OSError):  # one that may not be read is none that was made here
                sync(each.parent)
    _named.update(chain)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the machine refuses inside the block, as one line that names the file or folder.

    Raises:
        StorageError: no space, no permission, a folder that is gone.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        remedies = UNWRITABLE | {errno.ENOTDIR: "give another output_dir"}
        remedy = remedies.get(error.errno or 0)
        if error.errno == errno.ENOENT:
            remedy = _GONE if _takes_files(path.absolute().parent) else _RIGHTS
        said = f"cannot write {path}: {error.strerror or error}"
        raise StorageError(said if remedy is None else f"{said}; {remedy}") from error


def _takes_files(folder: Path) -> bool:
    """Whether a file can be made in a folder, or, where it is gone, in the nearest above it: not so in /proc."""
    there = next(each for each in (folder, *folder.parents) if each.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, durably, when the block ends without an error.

    A file that is replaced keeps its mode; that of a new one is what the umask leaves. What writers of the same file
    left that were killed goes.

    Raises:
        StorageError: writing failed (disk full, no permission); what stood at `path` before is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with writing(path):
        try:
            make_folder(path.parent)
            _remove_half_written(path)
            held = _make_held(temporary)
            try:
                mode = stat.S_IMODE((path if path.exists() else temporary).stat().st_mode)
                yield temporary
                temporary.chmod(mode)  # some writers make a file of their own, for its owner alone
                sync(temporary)
                os.replace(temporary, path)
                sync(path.parent)
            finally:
                os.close(held)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _make_held(path: Path) -> int:
    """A new file that this process holds: until it closes the descriptor, nobody takes it for one left by a kill."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    with contextlib.suppress(OSError):  # without locks nobody removes it either
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _remove_half_written(path: Path) -> None:
    """Remove the temporary files of `path` that no process holds."""
    form, names = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp"), []
    with contextlib.suppress(OSError):  # a folder that may be written, but not read
        names = os.listdir(path.parent)
    for name in filter(form.fullmatch, names):
        with contextlib.suppress(OSError):
            descriptor = os.open(path.with_name(name), os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.with_name(name).unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place, durably, when the block ends without an error.

    Raises:
        StorageError: writing failed; what stood at `path` before is intact.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{path.name}{mark}.tmp") for mark in ("", ".old"))
    with writing(path):
        make_folder(path.parent)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            mode = stat.S_IMODE(temporary.stat().st_mode) & 0o666
            for file in temporary.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    file.chmod(mode)  # libraries give weights a mode of their own
            sync_tree(temporary)
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            for leftover in (temporary, old):
                shutil.rmtree(leftover, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there. A folder loses its name first, so that no half of it is ever read."""
    if path.is_dir() and not path.is_symlink():
        gone = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
        with contextlib.suppress(OSError):
            os.replace(path, gone)
            path = gone
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


class Lock:
    """What `hold_lock` gives: others are kept out until `release`, or until this process ends, however it ends."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        """Let others in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def hold_lock(path: Path, busy: str, *, wait: bool = False) -> Lock:
    """A lock that keeps other processes out until it is released, or this process ends, however it ends.

    Args:
        path: its file, which is made and stays.
        busy: what the error says where another process holds it.
        wait: wait for the other process instead.

    Raises:
        StorageError: another process holds it, or the place cannot be written or knows no locks.
    """
    if os.environ.get(LOCKS, "").lower() == "off":
        return Lock(None)
    with writing(path.parent):
        make_folder(path.parent)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        raise StorageError(busy) from None
    except OSError as error:
        os.close(descriptor)
        raise StorageError(
            f"{path.parent}: this file system knows no locks ({error.strerror or error}); give a place on another, or "
            f"set {LOCKS}=off and see to it that one process alone works there"
        ) from error
    except BaseException:
        os.close(descriptor)
        raise
    return Lock(descriptor)


# --- text, JSON and JSONL --------------------------------------------------------------------------------------------


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 so that a reader sees the old file or the new one, never half of it.

    Half a surrogate pair, which UTF-8 does not know, is written as its escape, which JSON reads back.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def write_json_atomic(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (`ValueError`)."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, remedy: str = REMEDY) -> Any:
    """The value in a JSON file.

    Args:
        path: the file.
        remedy: what to do where it is damaged.

    Raises:
        MissingFileError: there is no such file.
        DamagedFileError: it holds no JSON.
    """
    text = read_text(path, remedy)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{path} is damaged, it is no JSON ({error}): {remedy}") from None


def write_sealed_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with its own SHA-256 among its entries, for `read_sealed_json`."""
    value = json.loads(json.dumps(dict(value), allow_nan=False))
    write_json_atomic(path, {**value, "sha256": _json_sha256(value)})


def read_sealed_json(path: Path, remedy: str = REMEDY, *, old: bool = False) -> dict[str, Any]:
    """The object that `write_sealed_json` wrote.

    Args:
        path: the file.
        remedy: what to do where it is damaged.
        old: whether one without a SHA-256, as earlier versions wrote it, is taken too.

    Raises:
        MissingFileError: there is no such file.
        DamagedFileError: it does not hold what was written.
    """
    value = read_json(path, remedy)
    stored = value.pop("sha256", None) if isinstance(value, dict) else None
    if isinstance(value, dict) and (old if stored is None else stored == _json_sha256(value)):
        return value
    raise DamagedFileError(f"{path} is damaged, it is not what was written: {remedy}")


def remembered(path: Path, compute: Callable[[], Any]) -> Any:
    """The JSON value that was computed before, in the file of that name; else computed, and written there."""
    value = recalled(path)
    return remember(path, compute()) if value is None else value


def recalled(path: Path) -> Any:
    """The JSON value that `remember` wrote; None where there is none, or, which is said, not what was written."""
    if not path.exists():
        return None
    with contextlib.suppress(DamagedFileError, KeyError, TypeError):
        record = read_json(path)
        if record["sha256"] == _json_sha256(record["value"]):
            return record["value"]
    warnings.warn(f"{path} is damaged: it is made again", DamageWarning, stacklevel=3)
    return None


def remember(path: Path, value: Any) -> Any:
    """Write a JSON value, not null, with its SHA-256, for `recalled`; returns it as that gives it back."""
    value = json.loads(json.dumps(value, allow_nan=False))
    write_json_atomic(path, {"sha256": _json_sha256(value), "value": value})
    return value


def _json_sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_jsonl_atomic(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write one JSON object a line, atomically."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    write_text_atomic(path, "".join(line + "\n" for line in lines))


def read_jsonl(path: Path, remedy: str = REMEDY) -> list[dict[str, Any]]:
    """The objects of a JSONL file that `write_jsonl_atomic` wrote; lines end at "\\n" alone.

    Args:
        path: the file.
        remedy: what to do where it is damaged.

    Raises:
        MissingFileError: there is no such file.
        DamagedFileError: a line holds no JSON object, or the last one has no end.
    """
    lines = read_text(path, remedy).split("\n")
    if lines.pop():
        raise DamagedFileError(f"{path} is damaged, its last line is cut: {remedy}")
    return [_object(line, f"{path} is damaged, line {number}", remedy) for number, line in enumerate(lines, 1)]


def read_log(path: Path, remedy: str = REMEDY) -> list[dict[str, Any]]:
    """The objects of a file to which lines are appended, such as metrics.jsonl; none where there is no such file.

    A process that was killed may leave a last line without its end, which is left out; every line before it is whole.

    Raises:
        DamagedFileError: another line holds no JSON object.
    """
    if not path.exists():
        return []
    *lines, cut = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    with contextlib.suppress(DamagedFileError):
        if cut:
            _object(cut, "", "")
            lines.append(cut)  # it lacks its line feed alone
    return [_object(line, f"{path} is damaged, line {number}", remedy) for number, line in enumerate(lines, 1)]


def _object(line: str, where: str, remedy: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"{where}: {error}: {remedy}") from None
    if not isinstance(value, dict):
        raise DamagedFileError(f"{where}: no object: {remedy}")
    return value


def read_text(path: Path, remedy: str = REMEDY) -> str:
    """The text of a UTF-8 file.

    Raises:
        MissingFileError: there is no such file. StorageError: it cannot be read. DamagedFileError: it is no UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"{path} is damaged, it is no UTF-8 ({error.reason}): {remedy}") from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 16):
            digest.update(block)
    return digest.hexdigest()


WHOLE_BYTES = 2**30
"""Files up to this size are read whole to tell whether they have changed; of larger ones `_BLOCKS` blocks are."""
_BLOCKS, _BLOCK = 64, 2**20


def fingerprint(path: Path) -> str:
    """What a file holds: its size, and SHA-256 of its bytes or, above `WHOLE_BYTES`, of a part of them."""
    size = path.stat().st_size
    if size <= WHOLE_BYTES:
        return f"{size} bytes, {file_sha256(path)}"
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for index in range(_BLOCKS + 1):
            file.seek((size - _BLOCK) * index // _BLOCKS)
            digest.update(file.read(_BLOCK))
    return f"{size} bytes, {digest.hexdigest()}"


def sealed(folder: Path, paths: Iterable[Path]) -> dict[str, str]:
    """Name under `folder` -> fingerprint of each of the files that is there, for a marker that says: these are done.

    All of them are synced. What is hidden, or lies in a hidden folder, is passing and left out.
    """
    names = {path.relative_to(folder).as_posix(): path for path in sorted(set(paths)) if path.is_file()}
    names = {name: path for name, path in names.items() if not f"/{name}".count("/.")}
    _sync_all(names.values())
    _sync_all({path.parent for path in names.values()})
    return {name: fingerprint(path) for name, path in names.items()}


def changed_files(folder: Path, recorded: Mapping[str, str]) -> list[str]:
    """Names of files that are missing, or no longer hold what they held when they were `sealed`."""
    return [
        name for name, held in recorded.items() if not (folder / name).is_file() or fingerprint(folder / name) != held
    ]


def is_secret(name: str) -> bool:
    """Whether an argument of that name holds a password or token, which belongs into no file."""
    return _SECRET.search(name) is not None


def without_secrets(value: Any) -> Any:
    """A value without the entries of secret names, and with what has a token's form hidden; inside of it too."""
    if isinstance(value, Mapping):
        return {name: without_secrets(each) for name, each in value.items() if not is_secret(str(name))}
    if isinstance(value, (list, tuple)):
        return [without_secrets(each) for each in value]
    return hidden_secrets(value) if isinstance(value, str) else value


def hidden_secrets(text: str) -> str:
    """A text in which tokens and passwords, by their form, are hidden."""
    return _SECRET_VALUE.sub(HIDDEN, text)
