"""docs/walkthrough.md is one program that runs, and every function that it names is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
from tests.docs.test_readme import workplace as workplace  # a fixture

TEXT = (Path(__file__).parents[2] / "docs/walkthrough.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(densepath(?:\.\w+){2,})`", TEXT)))
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", NAMED)
def test_every_function_that_is_named_is_there(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_what_the_code_calls_is_named_in_the_text():
    imported = {
        f"{module}.{name.strip()}"
        for module, names in re.findall(r"^from (densepath[\w.]+) import (.+)$", "".join(BLOCKS), flags=re.MULTILINE)
        for name in names.split(",")
    }
    helpers = {"densepath.models.load.load_tokenizer", "densepath.models.load.eos_token_ids"}
    assert imported - set(NAMED) - helpers == {"densepath.core.masks.lengths_to_mask"}


def test_the_blocks_are_one_program(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    namespace: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, "docs/walkthrough.md", "exec"), namespace)
    norms = [parameter.grad.norm() for parameter in namespace["policy"].parameters()]
    assert all(map(torch.isfinite, norms))
    assert sum(norms) > 0
    assert "gradient norm:" in capsys.readouterr().out
