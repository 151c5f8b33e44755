"""Versions and devices of this installation, and the memory of this process."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

from densepath import __version__

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy")


def environment() -> dict[str, str]:
    """Name -> version or description; packages that are not installed say so."""
    import torch

    found = {"densepath": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in (*PACKAGES, "vllm", "deepspeed", "bitsandbytes"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in PACKAGES:
                found[name] = "not installed"
    found["cpu"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["gpu"] = ", ".join(names)
        found["cuda"] = str(torch.version.cuda)
    else:
        found["gpu"] = "none"
    return found


def resident_bytes() -> float:
    """Most memory that this process has had resident so far, in bytes.

    Not `ru_maxrss` where the kernel has better: on Linux that one also counts what the parent had when it started
    this process, which is a lot where the parent is a notebook that holds a model.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024.0 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        import resource  # not on Windows

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return float(peak if sys.platform == "darwin" else peak * 1024)
