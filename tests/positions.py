"""What models read: the positions of every forward pass, counted at their embeddings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def counted_positions(*models: Any) -> Iterator[list[int]]:
    """The positions of each forward pass of the models in the block, in turn, padding included."""
    read: list[int] = []
    handles = [
        model.get_input_embeddings().register_forward_hook(lambda module, given, found: read.append(given[0].numel()))
        for model in models
    ]
    try:
        yield read
    finally:
        for handle in handles:
            handle.remove()
