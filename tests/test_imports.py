"""Imports point one way, and the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import densepath

ROOT = Path(densepath.__file__).parent

LAYERS = [
    {"errors", "io", "terminal", "__init__"},
    {"core", "config"},
    {"records"},
    {"stats"},
    {"data", "models", "theory"},
    {"rewards", "planning"},
    {"trainers", "evals"},
    {"report"},
    {"pipeline"},
    {"experiments"},
    {"serve"},
    {"cli"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_rooms(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == "densepath":
                names = [f"densepath.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "densepath":
                target = parts[1] if len(parts) > 1 else "__init__"
                yield (target if target in RANK else "__init__"), node.lineno


def violations(files):
    found = []
    for path in files:
        for target, line in imported_rooms(path):
            mine = room(path)
            same_rank = RANK[target] == RANK[mine] and target != mine and mine != "__init__"
            # Rooms of one layer do not import each other, but for these, where one stands on the other's records.
            allowed = {("models", "data"), ("trainers", "evals")}
            if RANK[target] > RANK[mine] or (same_rank and (mine, target) not in allowed and RANK[mine] > 0):
                found.append(f"{path.relative_to(ROOT)}:{line} imports {target}")
    return found


def test_every_room_has_a_layer():
    rooms = {room(path) for path in ROOT.rglob("*.py")}
    assert rooms == set(RANK)


def test_imports_point_down():
    assert violations(ROOT.rglob("*.py")) == []


def test_an_arrow_that_points_up_is_seen(tmp_path, monkeypatch):
    bad = ROOT / "core" / "masks.py"
    source = bad.read_text(encoding="utf-8") + "\nfrom densepath.trainers import dpr\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: source)
    assert violations([bad])


@pytest.mark.parametrize("room_name", ["core", "records", "stats", "report"])
def test_light_rooms_stay_light(room_name):
    """core knows no transformers; records, stats and report, no torch."""
    torch = {"torch", "transformers", "trl"}
    heavy = {"core": {"transformers", "trl", "yaml"}, "records": torch, "stats": torch, "report": torch}[room_name]
    for path in (ROOT / room_name).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {m.split(".")[0] for m in modules} & heavy, path


def test_the_command_line_and_the_package_import_without_torch():
    code = (
        "import sys, densepath, densepath.cli.main, densepath.cli.run, densepath.config.run; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
