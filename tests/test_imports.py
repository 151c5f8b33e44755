"""Imports point one way, and the command line stays light."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

import densepath
from densepath.cli import main
from densepath.cli.commands import ROWS

ROOT = Path(densepath.__file__).parent
FRONT = ROOT / "__init__.py"
"""Names every room and stands outside of their layers; who imports a name from it imports the name's room."""

LAYERS = [
    {"errors", "io", "progress", "terminal"},
    {"core", "records", "stats", "config"},
    {"data", "theory"},
    {"models"},
    {"rewards", "planning"},
    {"judging", "evals"},
    {"trainers"},
    {"methods", "choice", "report"},
    {"evidence"},
    {"pipeline", "scoring"},
    {"experiments"},
    {"serve"},
    {"cli"},
    {"__main__"},
]
"""Rooms import from the layers below, and from their own layer in one direction; some are still to come."""
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
READS_ONLY = {"report": {"errors", "io", "terminal", "records", "report"}}

KNOWN = {"rewards/scores.py -> report"}
"""Arrows that still point up. The list may only shrink."""

WITH_TRL = {"run", "sft", "dpr", "experiment", "plan", "purify"}
"""Commands that train, or read TRL's arguments."""
IN_A_TRAINER = ROOT / "models/sharded.py"
"""Scores a model whose weights are spread, which only a trainer does: the one place below that imports TRL."""


def room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def file_of(module: str) -> Path | None:
    """The file of a module of densepath, or None where the name is no module."""
    place = ROOT.joinpath(*module.split(".")[1:])
    candidates = (place.with_suffix(".py"), place / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Modules that a file imports, in functions too, and the line; a name of the front door is its module."""
    package = ("densepath", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (above, node.module)))
            if source.split(".")[0] != "densepath":
                yield source, node.lineno
                continue
            for alias in node.names:
                whole = densepath._EXPORTS.get(alias.name) if source == "densepath" else None
                whole = whole or f"{source}.{alias.name}"
                yield (whole if file_of(whole) else source), node.lineno
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "densepath":
            yield densepath._EXPORTS.get(node.attr, "densepath"), node.lineno


def arrows(files) -> dict[str, tuple[str, str]]:
    """`core/masks.py -> data` of every import into another room, with the two rooms."""
    found = {}
    for path in files:
        if path == FRONT:
            continue
        for module, _ in imported(path):
            target = file_of(module) if module.split(".")[0] == "densepath" else None
            if target not in (None, FRONT) and room(target) != room(path):
                found[f"{path.relative_to(ROOT)} -> {room(target)}"] = room(path), room(target)
    return found


def violations(files) -> set[str]:
    found = arrows(files)
    pairs = set(found.values())

    def wrong(mine: str, target: str) -> bool:
        both_ways = RANK[mine] == RANK[target] and RANK[mine] > 0 and (target, mine) in pairs
        return RANK[target] > RANK[mine] or both_ways or target not in READS_ONLY.get(mine, RANK)

    return {arrow for arrow, (mine, target) in found.items() if wrong(mine, target)}


def test_every_room_has_a_layer():
    assert {room(path) for path in ROOT.rglob("*.py")} - {"__init__"} <= set(RANK)


def test_what_is_imported_is_there():
    """In functions too, which no other test may reach."""
    own = ((path, module) for path in ROOT.rglob("*.py") for module, _ in imported(path) if "densepath" in module)
    assert [(path, module) for path, module in own if module != "densepath" and file_of(module) is None] == []


def test_no_other_package_of_tests_is_found_in_place_of_these(tmp_path):
    """Some distributions install one; without an `__init__.py` this folder would come after all of them."""
    other = tmp_path / "tests/pipeline"
    other.mkdir(parents=True)
    for folder in (other, other.parent):
        (folder / "__init__.py").touch()
    own = Path(__file__).parent
    for package in ("tests", "benchmarks"):
        found = PathFinder.find_spec(package, [str(own.parent), str(tmp_path)])
        assert found is not None
        assert found.origin == str(own.parent / package / "__init__.py")


def test_imports_point_down():
    found = violations(ROOT.rglob("*.py"))
    assert found - KNOWN == set(), "points up"
    assert KNOWN - found == set(), "mended: take it off the list"


@pytest.mark.parametrize(
    "line",
    [
        "from densepath.trainers import dpr",
        "from densepath import DPRTrainer",
        "from ..trainers import dpr",
        "from .. import DPRConfig",
        "import densepath.trainers.dpr",
        "import densepath\ntrain = densepath.DPRTrainer",
        "def inner():\n    from densepath.trainers.dpr import DPRTrainer",
    ],
)
def test_an_arrow_that_points_up_is_seen(monkeypatch, line):
    bad = ROOT / "core" / "masks.py"
    source = f"{bad.read_text(encoding='utf-8')}\n{line}\n"
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: source)
    assert violations([bad]) == {"core/masks.py -> trainers"}


def test_two_rooms_of_one_layer_that_import_each_other_are_seen(monkeypatch):
    lines = {"core": "from densepath.records import codec", "records": "from densepath.core import masks"}
    monkeypatch.setattr(Path, "read_text", lambda self, **kwargs: lines[room(self)])
    files = [ROOT / "core/masks.py", ROOT / "records/codec.py"]
    assert violations(files) == {"core/masks.py -> records", "records/codec.py -> core"}
    assert violations(files[:1]) == set()


@functools.cache
def modules(path: Path) -> frozenset[str]:
    """What a file imports; each is read once, however many commands lead to it."""
    return frozenset(module for module, _ in imported(path))


def reached(path: Path) -> tuple[set[Path], set[str]]:
    """Files of densepath that a file leads to, packages included, and the other packages that these import."""
    seen, others, todo = {path}, set(), [path]
    while todo:
        for module in modules(todo.pop()):
            parts = module.split(".")
            if parts[0] != "densepath":
                others.add(parts[0])
                continue
            for depth in range(2, len(parts) + 1):
                target = file_of(".".join(parts[:depth]))
                if target not in (None, FRONT, IN_A_TRAINER, *seen):
                    seen.add(target)
                    todo.append(target)
    return seen, others


COMMANDS = sorted(main.COMMANDS)


def front_of(command: str) -> Path:
    """The file that a command leads to: its own, or that of the function in its row."""
    row = ROWS.get(command)
    place = f"densepath.{row.function.partition(':')[0]}" if row else f"densepath.cli.{command}"
    found = file_of(place)
    assert found is not None, place
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_that_does_not_train_imports_no_trl(command):
    assert ("trl" in reached(front_of(command))[1]) == (command in WITH_TRL)


@pytest.mark.parametrize("command", sorted(ROWS))
def test_the_function_of_a_row_takes_what_the_row_gives(command):
    row = ROWS[command]
    functions = ast.parse(front_of(command).read_text(encoding="utf-8")).body
    (found,) = (f for f in functions if isinstance(f, ast.FunctionDef) and f.name == row.function.partition(":")[2])
    annotations = [ast.unparse(each.annotation) for each in found.args.args if each.annotation]
    assert annotations[0] == row.arguments.partition(":")[2]
    assert len(annotations) == (3 if row.passthrough else 2)
    assert annotations[-1].startswith("Console")


BY_NAME = {
    ROOT / "rewards/loading.py",
    *(ROOT / f"models/{name}.py" for name in ("load", "linear", "locate", "identity", "quantized", "smollm2")),
}
"""What loads models by name, settles how they multiply, and writes down which they were."""


@pytest.mark.parametrize(("start", "aside", "most"), [("scoring/job.py", set(), 50), ("trainers/dpr.py", BY_NAME, 49)])
def test_scoring_and_the_trainer_need_little_of_the_house(start, aside, most):
    files = {path for path in reached(ROOT / start)[0] if path.name != "__init__.py"}
    # What a notebook shows is a page, and pages know every record.
    assert len({path for path in files - aside if room(path) not in ("report", "records")}) <= most


@pytest.mark.parametrize(
    ("room_name", "heavy"),
    [
        ("core", {"transformers", "trl", "yaml"}),
        ("config", {"torch", "transformers", "trl"}),
        ("records", {"torch", "transformers", "trl"}),
        ("stats", {"torch", "transformers", "trl"}),
        ("report", {"torch", "transformers", "trl"}),
    ],
)
def test_light_rooms_stay_light(room_name, heavy):
    """core knows no transformers; configs, records, figures and pages, no torch."""
    for path in (ROOT / room_name).rglob("*.py"):
        assert not {module.split(".")[0] for module, _ in imported(path)} & heavy, path


def test_the_command_line_and_the_package_import_without_torch():
    commands = ", ".join(f"densepath.cli.{name}" for name in COMMANDS if name not in ROWS)
    code = (
        f"import sys, densepath, densepath.cli.main, {commands}; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'trl')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
