"""Counting bytes that are really there: storages alive under a dispatch mode, and what autograd saves."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations inside the block made and that are still alive; `peak` is the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf):
                storage = leaf.untyped_storage()
                if storage._cdata not in known and storage._cdata not in self._seen:
                    self._seen[storage._cdata] = storage.nbytes()
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._gone, storage._cdata)
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, key: int) -> None:
        self.now -= self._seen.pop(key, 0)


class WidestRows(TorchDispatchMode):
    """`rows`: the most rows of any new tensor whose last dimension is the vocabulary, of all that the block makes."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            wide = torch.is_tensor(leaf) and leaf.dim() and leaf.shape[-1] == self.vocabulary
            if wide and leaf.untyped_storage()._cdata not in known:
                self.rows = max(self.rows, leaf.numel() // self.vocabulary)
        return result


@contextmanager
def saved_bytes(*ignored: torch.Tensor) -> Iterator[list[int]]:
    """Bytes of the distinct storages that autograd saves inside the block, `ignored` ones (weights) left out."""
    skipped = {tensor.untyped_storage().data_ptr() for tensor in ignored}
    seen: dict[int, int] = {}
    keep, total = [], [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in skipped and storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = storage.nbytes()
            keep.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total
    total[0] = sum(seen.values())
