"""Disks that fail: a power cut on a real ext4 file system, and a disk that is full. Both need root."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import struct
import subprocess
import time
from pathlib import Path

_SHUTDOWN, _WITHOUT_LOG = 0x8004587D, 2
"""ext4's ioctl that ends a file system at once, and not even its journal is written: as xfstests cut the power."""
_MEGABYTES = 96
_SECONDS = 60


def may_mount() -> bool:
    """Whether this process may mount file systems, and the machine has loop devices."""
    return os.geteuid() == 0 and shutil.which("mkfs.ext4") is not None and Path("/dev/loop-control").exists()


class CutDisk:
    """An ext4 file system in a file on a loop device.

    Args:
        image: the file; made.
        place: folder where it is mounted; made.
    """

    def __init__(self, image: Path, place: Path) -> None:
        self.image, self.place = image, place
        place.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(_MEGABYTES << 20)
        options = "lazy_itable_init=0,lazy_journal_init=0"
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, str(image)], check=True)
        _mount(["-o", "loop", str(image)], place)

    def cut(self) -> None:
        """The power fails, and comes back: what was not on the disk is lost, and the journal is replayed."""
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG))
        finally:
            os.close(descriptor)
        self._let_go()
        _mount(["-o", "loop", str(self.image)], self.place)

    def close(self) -> None:
        """Take it away."""
        self._let_go()
        self.image.unlink()

    def _let_go(self) -> None:
        """Unmount, and wait for processes of other work that have taken a copy of all mounts along: who mounts it$
        while they hold the disk gets the dead one."""
        _unmount(self.place)
        deadline = time.monotonic() + _SECONDS
        while subprocess.run(["losetup", "-j", str(self.image)], check=True, capture_output=True).stdout:
            assert time.monotonic() < deadline, f"{self.image} is still mounted somewhere"
            time.sleep(0.05)


class SmallDisk:
    """A file system in memory, of a size that may grow.

    Args:
        place: folder where it is mounted; made.
        kilobytes: its size.
    """

    def __init__(self, place: Path, kilobytes: int) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        _mount(["-t", "tmpfs", "-o", f"size={kilobytes}k", "none"], place)

    def grow(self, kilobytes: int) -> None:
        """Have so much room from now on."""
        _mount(["-o", f"remount,size={kilobytes}k"], self.place)

    def close(self) -> None:
        """Take it away."""
        _unmount(self.place)


def _mount(words: list[str], place: Path) -> None:
    subprocess.run(["mount", *words, str(place)], check=True)


def _unmount(place: Path) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["umount", str(place)], check=True, timeout=_SECONDS)
