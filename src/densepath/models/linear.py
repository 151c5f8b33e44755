"""Which library multiplies the layers of models on this machine: both are tried once, at a model's own shapes."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from densepath.core import products
from densepath.core.products import Library

CLEARLY = 1.5
"""How many times faster oneDNN must be to be taken. Both round differently, so what is close to a tie must not be
decided by the noise of a trial: they differ by a tenth where MKL knows the processor's best instructions or these
gain nothing (Zen 4), and by a factor of two where not (Zen 5)."""
_ROWS = 256
_WIDEST = 2048
_SHAPES = 3
_REPEATS = 4
_BANDWIDTH_SIDE = 2**13
_SMOLLM2 = Counter({(576, 576): 60, (192, 576): 60, (1536, 576): 60, (576, 1536): 30, (49152, 576): 1})
_LEAST_WEIGHTS = 2**22
"""Numbers in the layers of a model from which a trial can pay."""
_logger = logging.getLogger(__name__)


class Rates(NamedTuple):
    """Thousand millions of float32 operations per second of each library, on one thread."""

    blas: float
    onednn: float | None

    def __str__(self) -> str:
        onednn = "not in this build" if self.onednn is None else f"{self.onednn:.0f}"
        return f"{Library.BLAS.value} {self.blas:.0f}, oneDNN {onednn} float32 GFLOP/s a core"


_tried: Rates | None = None


def choose_library(model: nn.Module) -> None:
    """Let the faster library multiply the float32 layers of models on the CPU, in this process.

    The first model that is large enough to gain decides, in about half a second; a process never changes
    its mind, so that equal passes stay equal.
    """
    global _tried
    if _tried is not None:
        return
    shapes = _shapes(model)
    if sum(count * out * width for (out, width), count in shapes.items()) < _LEAST_WEIGHTS:
        return
    _tried = measure_rates(shapes)
    faster = _tried.onednn is not None and _tried.onednn >= CLEARLY * _tried.blas
    if faster:
        install()
    _logger.info("linear layers on the CPU through %s (%s)", products.in_use().value, _tried)


def install() -> None:
    """Multiply through oneDNN: in core's heads, and in every linear layer, those of adapters to come included.

    The classes' forward pass is replaced, not the modules': what matches, copies, saves or counts modules sees none.
    """
    products.use(Library.ONEDNN)
    nn.Linear.forward = _linear_forward  # type: ignore[method-assign]
    Conv1D.forward = _conv1d_forward


def _linear_forward(self: nn.Linear, input: Tensor) -> Tensor:
    return products.linear(input, self.weight, self.bias)


def _conv1d_forward(self: Any, x: Tensor) -> Tensor:
    return products.linear(x, self.weight.t(), self.bias)


def measure_rates(shapes: Counter[tuple[int, int]] | None = None) -> Rates:
    """Both libraries at the products of a training step: forward, by the inputs, by the weights.

    In processor seconds of one thread, which other processes disturb least.

    Args:
        shapes: (out, width) of linear layers and how many there are; SmolLM2-135M's if None.
    """
    work = {shape: count * math.prod(shape) for shape, count in (shapes or _SMOLLM2).items()}
    heaviest = sorted(work, key=lambda shape: (-work[shape], shape))[:_SHAPES]
    total = sum(work[shape] for shape in heaviest)
    with _one_thread():
        seconds = [_seconds_per_operation(*shape) for shape in heaviest]
    blas = sum(work[shape] * first for shape, (first, _) in zip(heaviest, seconds, strict=True))
    onednn = sum(work[shape] * second for shape, (_, second) in zip(heaviest, seconds, strict=True))
    return Rates(total / blas / 1e9, total / onednn / 1e9 if math.isfinite(onednn) else None)


def _seconds_per_operation(out: int, width: int) -> tuple[float, float]:
    """Of BLAS and of oneDNN, the least of several trials in turns; infinity where oneDNN cannot or differs."""
    out, width = min(out, _WIDEST), min(width, _WIDEST)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator)
    inputs = torch.randn(_ROWS, width, generator=generator)
    upstream = torch.randn(_ROWS, out, generator=generator)
    pairs = (inputs, weight), (upstream, weight.t()), (upstream.t(), inputs.t())

    def products_of(function: Callable[..., Tensor]) -> list[Tensor]:
        return [function(*pair) for pair in pairs]

    functions: list[Callable[..., Tensor]] = [nn.functional.linear]
    if products.has_onednn() and _agree(products_of):
        functions.append(products.onednn_linear)
    best = [math.inf, math.inf]
    for _ in range(_REPEATS):
        for place, function in enumerate(functions):
            begin = time.thread_time()
            products_of(function)
            best[place] = min(best[place], time.thread_time() - begin)
    operations = 2 * len(pairs) * _ROWS * out * width
    return best[0] / operations, best[1] / operations


def memory_bandwidth() -> float:
    """Bytes per second that one thread reads from a matrix larger than a cache."""
    matrix = torch.ones(_BANDWIDTH_SIDE, _BANDWIDTH_SIDE)
    best = math.inf
    with _one_thread():
        for _ in range(_REPEATS):
            begin = time.thread_time()
            matrix.sum()
            best = min(best, time.thread_time() - begin)
    return matrix.nbytes / best


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _agree(products_of: Callable[[Callable[..., Tensor]], list[Tensor]]) -> bool:
    """Whether an operator that torch keeps private still does what it did."""
    try:
        pairs = zip(products_of(products.onednn_linear), products_of(nn.functional.linear), strict=True)
        return all(torch.allclose(found, true, rtol=1e-3, atol=1e-3 * float(true.std())) for found, true in pairs)
    except (RuntimeError, TypeError, NotImplementedError):
        return False


def _shapes(model: nn.Module) -> Counter[tuple[int, int]]:
    """(out, width) of the float32 linear layers on the CPU, and how many there are."""
    found: Counter[tuple[int, int]] = Counter()
    for module in model.modules():
        if type(module) in (nn.Linear, Conv1D):
            weight: Tensor = module.weight  # type: ignore[assignment]
            if weight.dtype is torch.float32 and weight.device.type == "cpu":
                shape = getattr(weight, "ds_shape", weight.shape)  # whole, where DeepSpeed spreads it
                out, width = shape if type(module) is nn.Linear else shape[::-1]
                found[int(out), int(width)] += 1
    return found
