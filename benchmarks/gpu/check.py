"""Everything that a GPU changes, on one GPU in under ten minutes and without a network; docs/gpu.md says how.

    python -m benchmarks.gpu.check --output_dir gpu-check [--device cuda] [--parts smoke,speed] [--minutes 9.5]
    python -m benchmarks.gpu.check --output_dir gpu-check --device cpu --tiny     # its own logic, without a GPU

Each part runs in a process of its own within its time box, and its figures are written after each item, so that a
check that is cut off still says what it found: `gpu_check.json`, and `<part>.json` and `<part>.log` beside it.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.gpu.boxes import SUMMARY, Box, Report, command, failures, in_boxes
from benchmarks.words import Parser, positive, run_command
from densepath.io import write_json_atomic
from densepath.models.quiet import quiet_libraries
from densepath.pipeline.environment import environment

BOXES = (
    Box("smoke", "every stage on tiny models: the device's results equal the CPU's", 150),
    Box("speed", "a step of DPR and of GRPO, scoring, memory against its plan", 210),
    Box("noise", "the reward in float32 and bfloat16", 40),
    Box("extras", "4 bits, gradient checkpointing, FSDP2 on one device, vLLM", 90),
    Box("tests", "default tests that take the GPU where there is one", 75, open_ended=True),
)
"""The most telling first; their seconds of `MINUTES`, where all are asked for."""
MINUTES = 9.5


@dataclass(frozen=True)
class Settings:
    """Where the parts run, and whether at the smallest sizes."""

    device: str
    tiny: bool
    folder: Path


def boxes_of(asked: Collection[str], minutes: float) -> list[Box]:
    """The parts that are asked for, with shares of the minutes by what each takes of `MINUTES`."""
    boxes = [box for box in BOXES if box.name in asked]
    share = 60 * minutes / sum(box.seconds for box in boxes)
    return [replace(box, seconds=share * box.seconds) for box in boxes]


def main() -> int:
    parser = Parser(__doc__)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest sizes, to try the check itself")
    parser.add_argument("--parts", default=",".join(box.name for box in BOXES), help="names with commas between them")
    parser.add_argument(
        "--minutes", type=positive, default=MINUTES, help="for all parts together, of which each has a share"
    )
    parser.add_argument("--part", help=argparse.SUPPRESS)  # in the process of that part
    given = parser.parse_args()
    asked = given.parts.split(",")
    if unknown := set(asked) - {box.name for box in BOXES}:
        parser.error(f"no part {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(b.name for b in BOXES)}")
    settings = Settings(given.device, given.tiny, given.output_dir.resolve())
    if given.part is not None:
        settings.folder.mkdir(parents=True, exist_ok=True)
        quiet_libraries()
        part = importlib.import_module(f"benchmarks.gpu.{given.part}")
        part.run(settings, Report(settings.folder / f"{given.part}.json"))
        return 0
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("torch finds no CUDA device; --device cpu --tiny tries the check itself")
    try:
        settings.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output_dir: {error}")
    words = ["--output_dir", str(settings.folder), "--device", given.device, *(["--tiny"] if given.tiny else [])]
    records = in_boxes(boxes_of(asked, given.minutes), command(*words, "--part"), settings.folder, 60 * given.minutes)
    wrong = failures(records)
    write_json_atomic(settings.folder / SUMMARY, {"environment": environment(), "failures": wrong, "parts": records})
    print("\n".join(wrong) or "all is as it should be")
    return int(bool(wrong))


if __name__ == "__main__":
    run_command(main)
