"""Gather the wheels that a machine with torch, transformers, accelerate and PEFT lacks: one call of pip, and a limit.

    python -m benchmarks.gpu.kit FOLDER

They are for Python 3.12 on x86-64 Linux, and without their own requirements, which `MACHINE` has.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

TRAVEL = ("trl", "datasets")
"""In the versions that are installed here."""
WHEELS = ("dill", "multiprocess", "bitsandbytes")
"""Beside them, the newest."""
MACHINE = ("torch", "transformers", "accelerate", "peft", "scipy", "rich", "pytest")
MACHINE += ("pyarrow", "pandas", "xxhash", "psutil", "jinja2")
"""What the machine must have of its own, with the requirements of each: for densepath, and for what travels."""
LIMIT = 64 * 2**20
"""Bytes of all together."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__)
        return 2
    folder = Path(sys.argv[1])
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    where = ["--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp", *platforms]
    packages = [*(f"{name}=={version(name)}" for name in TRAVEL), *WHEELS]
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *where, "-d", str(folder)]
    done = subprocess.run([*download, *packages], check=False)
    if done.returncode:  # pip has said why
        return done.returncode
    sizes = {path.name: path.stat().st_size for path in sorted(folder.glob("*.whl"))}
    for name, size in sizes.items():
        print(f"{size / 2**20:7.1f} MiB  {name}")
    total = sum(sizes.values())
    print(f"{total / 2**20:7.1f} MiB in all, of {LIMIT / 2**20:.0f}")
    return int(total > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
