"""The heap's waste in a training pass, against a simulated heap that is given the real passes' allocations.

glibc (2.36 and before) cuts an aligned tensor out of a hole only where the hole is larger than it by alignment and
header, so a hole of just its size stays unused. Neighbouring holes merge, unless a small object lies between them.
Which of the two happens depends on what else the process does, so what is measured lies between a heap where all
neighbours merge and one where none do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.live_memory import LiveBytes
from tests.planning.test_memory import build, with_lora

from densepath.planning import memory
from densepath.planning.architecture import read_architecture

SPARE = 64 + 32
"""Alignment and smallest chunk: what an aligned request needs beyond its size."""
ROWS, WIDTH = 4, 64


class Heap:
    """Best fit, then the top; holes merge with their neighbours, or never do."""

    def __init__(self, merges: bool) -> None:
        self.merges = merges
        self.holes: dict[int, int] = {}
        self.taken: dict[int, tuple[int, int]] = {}
        self.top = self.peak = 0

    def take(self, key: int, size: int) -> None:
        fitting = [(length, start) for start, length in self.holes.items() if length >= size + SPARE]
        length, start = min(fitting, default=(size, self.top))
        if fitting:
            del self.holes[start]
            self.holes[start + size] = length - size
        else:
            self.top += size
            self.peak = max(self.peak, self.top)
        self.taken[key] = start, size

    def give(self, key: int) -> None:
        start, size = self.taken.pop(key)
        if self.merges:
            size += self.holes.pop(start + size, 0)
            before = next((each for each, length in self.holes.items() if each + length == start), None)
            if before is not None:
                start, size = before, size + self.holes.pop(before)
            if start + size == self.top:
                self.top = start
                return
        self.holes[start] = size


class Allocations(LiveBytes):
    """Gives each storage that operations make to the heaps, and takes it back."""

    def __init__(self, *heaps: Heap) -> None:
        super().__init__()
        self.heaps = heaps

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = set(self._seen)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        for key in self._seen.keys() - known:
            for heap in self.heaps:
                heap.take(key, self._seen[key])
        return result

    def _gone(self, key: int) -> None:
        super()._gone(key)
        for heap in self.heaps:
            heap.give(key)


def wasted(layers: int, *, lora: bool, checkpointing: bool) -> list[float]:
    """Bytes of the heap beyond what is alive after a forward pass: where holes merge, and where they do not."""
    torch.manual_seed(0)
    model = with_lora(build("llama", layers)) if lora else build("llama", layers)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    base = model.get_base_model().base_model if lora else model.base_model
    heaps = Heap(merges=True), Heap(merges=False)
    with Allocations(*heaps) as live:
        output = base(input_ids=torch.ones(ROWS, WIDTH, dtype=torch.long), use_cache=False)
        found = [heap.peak - live.now for heap in heaps]
    assert output.last_hidden_state.requires_grad
    return found


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_waste_lies_between_holes_that_merge_and_holes_that_do_not(lora, checkpointing):
    many, few = (wasted(layers, lora=lora, checkpointing=checkpointing) for layers in (6, 3))
    sizes = read_architecture(build("llama", 1), "llama")
    written = ROWS * WIDTH * sum(each.outputs for each in sizes.linears) * 4
    merging, pinned = ((a - b) / (3 * written) for a, b in zip(many, few, strict=True))
    assert merging < memory.HEAP_WASTE[lora, checkpointing] < pinned
