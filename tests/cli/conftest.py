"""Tiny models on disk for whole commands in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.pipeline.runs import save_tiny_model
from tests.support import tiny_tokenizer


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, str]:
    """Folders: `sft` and `ref` belong together, `foreign` has another tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    return {
        "sft": save_tiny_model(folder / "sft", seed=0),
        "ref": save_tiny_model(folder / "ref", seed=1),
        "foreign": save_tiny_model(folder / "foreign", tokenizer=tiny_tokenizer(byte_level=False)),
    }


@pytest.fixture
def write_jsonl(tmp_path):
    """Write rows into a file of tmp_path; its path as text."""

    def write(name: str, rows: list) -> str:
        path = Path(tmp_path / name)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write
