"""What was found out about one model holds in this process for every other of its kind: trials are not cheap.

A trial asks code and configuration, which copies with other weights share: the SFT model, its references, every arm.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn

from densepath.models.compat import computed_on, is_sharded

Found = TypeVar("Found")

_found: list[tuple[Any, Any]] = []
_OF_COPIES = ("name_or_path", "_name_or_path", "transformers_version", "training", "use_cache")
"""What differs between copies, and changes no logits."""


def once_for_kind(model: Any, question: Any, find: Callable[[], Found | None]) -> Found | None:
    """What `find` gives, or what it gave for a model of the same kind; None is not kept.

    Args:
        model: causal LM, as it is used: hooks, adapters and code of somebody's own make it a kind of its own.
        question: what is asked, with all that the answer depends on beside the kind; compared by equality.
        find: tries it.
    """
    kind = _kind(model)
    if kind is None:
        return find()
    for of, answer in _found:
        if of == (question, kind):
            return answer  # type: ignore[no-any-return]
    answer = find()
    if answer is not None:
        _found.append(((question, kind), answer))
    return answer


def _kind(model: Any) -> tuple[Any, ...] | None:
    """What a trial's answers depend on; None where they may depend on the weights too.

    So with code that is not transformers', and with NaN among them: in a packed row it would reach its neighbours.
    """
    modules = list(model.modules())
    changed = ("_forward_hooks", "_forward_pre_hooks", "forward")
    if is_sharded(model) or any(vars(module).get(name) for module in modules for name in changed):
        return None
    if not all(type(each).__module__.startswith(("torch.nn.modules.", "transformers.")) for each in modules):
        return None
    if not all(bool(weights.sum(dtype=torch.float32).isfinite()) for weights in model.parameters()):
        return None
    config = {name: value for name, value in model.config.to_dict().items() if name not in _OF_COPIES}
    return [(type(each), _plain_attributes(each)) for each in modules], config, computed_on(model)


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What was set on a module itself: numbers, switches, functions. Somebody may have changed one of them."""
    kinds = (int, float, str, type(None), FunctionType)
    return {name: value for name, value in vars(module).items() if isinstance(value, kinds) and name not in _OF_COPIES}
