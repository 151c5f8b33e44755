from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """PEFT still asks transformers 5.23 under a name that is going away; nothing of ours."""
    for item in (item for item in items if "models" in item.path.parts):
        item.add_marker(pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning"))
