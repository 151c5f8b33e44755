"""Versions and devices of this installation."""

from __future__ import annotations

import os
import platform
from importlib import metadata

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
