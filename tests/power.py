"""A power cut, simulated: what was written and not synced is lost, and a folder holds the names of its last sync.

`record` notes every sync of a process; `cut` then leaves of a folder what a disk would hold that had written nothing
but what it was asked to. A name that was removed without a sync of its folder stays gone, or comes back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import threading
from pathlib import Path
from typing import Any


def record(journal: Path, shadow: Path) -> None:
    """Note each `os.fsync` of this process in `journal`; files that have a synced name are kept in `shadow` too."""
    shadow.mkdir(exist_ok=True)
    inner, lock = os.fsync, threading.Lock()

    def fsync(descriptor: int) -> None:
        inner(descriptor)
        status = os.fstat(descriptor)
        note: dict[str, Any] = {"inode": status.st_ino}
        if stat.S_ISDIR(status.st_mode):
            names = {}
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        names[entry.name] = entry.stat(follow_symlinks=False).st_ino
                        if entry.is_file(follow_symlinks=False):
                            os.link(entry.name, shadow / str(names[entry.name]), src_dir_fd=descriptor)
            note["names"] = names
        else:
            note |= {"size": status.st_size, "time": status.st_mtime_ns}
        with lock, journal.open("a") as file:
            file.write(json.dumps(note) + "\n")

    os.fsync = fsync


def cut(folder: Path, journal: Path, shadow: Path, *, removed_come_back: bool = False) -> list[str]:
    """Take away from `folder` what no sync has kept; returns the names of what was lost."""
    names: dict[int, dict[str, int]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for line in journal.read_text().splitlines() if journal.exists() else []:
        note = json.loads(line)
        if "names" in note:
            names[note["inode"]] = note["names"]
        else:
            sizes[note["inode"]] = (note["size"], note["time"])
    lost: list[str] = []
    known = names.get(folder.parent.stat().st_ino)
    if known is None or known.get(folder.name) != folder.stat().st_ino:
        shutil.rmtree(folder)
        return [str(folder)]

    def settle(place: Path) -> None:
        synced = names.get(place.stat().st_ino, {})
        for path in sorted(place.iterdir()):
            status = path.lstat()
            if synced.get(path.name) != status.st_ino:
                lost.append(str(path))
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                if path.name in synced:  # it has taken the place of another
                    restore(path, synced[path.name])
        for name, inode in synced.items():
            if removed_come_back and not (place / name).exists():
                restore(place / name, inode)
        for path in sorted(place.iterdir()):
            if path.is_dir():
                settle(path)
                continue
            size, time = sizes.get(path.stat().st_ino, (0, 0))
            if path.stat().st_mtime_ns != time and path.stat().st_size:
                lost.append(str(path))
                os.truncate(path, min(size, path.stat().st_size))

    def restore(path: Path, inode: int) -> None:
        if (shadow / str(inode)).exists():
            os.link(shadow / str(inode), path)
        elif inode in names:
            path.mkdir()
            for name, inner in names[inode].items():
                restore(path / name, inner)
            names[path.stat().st_ino] = {each.name: each.stat().st_ino for each in path.iterdir()}

    settle(folder)
    return lost
