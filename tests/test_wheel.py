"""The wheel holds all that the package reads, and works where the repository is not."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import densepath
from tests.pipeline.runs import save_tiny_model

ROOT = Path(__file__).parents[1]
PACKAGE = Path(densepath.__file__).parent


def files_of_the_package() -> set[Path]:
    return {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_every_file_of_the_package_is_one_that_setuptools_takes():
    told = re.search(
        r"^\[tool\.setuptools\.package-data\]\ndensepath = (\[.*?\])",
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    data = {path for pattern in ast.literal_eval(told[1]) for path in PACKAGE.glob(pattern)}
    modules = {path for path in PACKAGE.rglob("*.py") if (path.parent / "__init__.py").is_file()}
    assert files_of_the_package() - data - modules == set()


@pytest.mark.slow
def test_the_wheel_works_without_the_repository(tmp_path):
    pytest.importorskip("setuptools")
    source, site, place = (tmp_path / name for name in ("source", "site", "elsewhere"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    shutil.copytree(PACKAGE, source / "src/densepath", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("densepath-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    held = {path.relative_to(site / "densepath") for path in (site / "densepath").rglob("*") if path.is_file()}
    assert held == {path.relative_to(PACKAGE) for path in files_of_the_package()}

    place.mkdir()
    row = {"prompt": "Say hello.", "completion": "hello"}
    (place / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    models = [save_tiny_model(place / name, seed=seed) for seed, name in enumerate(("sft", "before"))]
    environment = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def call(*words: str) -> str:
        program = "import densepath, sys; sys.stderr.write(densepath.__file__); from densepath.cli.main import main; "
        command = [sys.executable, "-c", f"{program}sys.exit(main())", *words]
        done = subprocess.run(command, cwd=place, env=environment, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.startswith(str(site))
        return done.stdout

    assert call("--version") == f"densepath {densepath.__version__}\n"
    call("theory", "--only", "5", "--instances", "1")
    pair = ["--model_name_or_path", models[0], "--ref_model_name_or_path", models[1]]
    call("score", *pair, "--dataset_name", "rows.jsonl")
    call("view", "scores.jsonl", "--html_file", "page.html")
    page = (place / "page.html").read_text(encoding="utf-8")
    assert "<style>" in page
    assert "<script" in page
