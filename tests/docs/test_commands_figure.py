"""The figure "which command when" is what its script draws, and names every command once."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from densepath.cli.main import COMMANDS

SCRIPT = Path(__file__).parents[2] / "docs/images/commands.py"


@pytest.fixture(scope="module")
def drawn():
    return runpy.run_path(str(SCRIPT))


def test_every_command_stands_in_it_once(drawn):
    names = [name for _, commands, _ in drawn["LANES"] for name, _ in commands]
    assert sorted(names) == sorted(COMMANDS)


def test_the_file_is_what_the_script_draws(drawn):
    """Else: python docs/images/commands.py."""
    assert SCRIPT.with_suffix(".svg").read_text(encoding="utf-8") == drawn["figure"]()
