"""Several processes of one launch: what the first one computes, all of them have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from torch import distributed

from densepath.errors import DensepathError
from densepath.models.sharded import loaded_whole

T = TypeVar("T")


def process_count() -> int:
    """Processes that were joined; 1 for one alone."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return process_count() == 1 or distributed.get_rank() == 0


def from_first(compute: Callable[[], T]) -> T:
    """What `compute` returns in the first process, in every one; the others wait, as long as `ddp_timeout` lets them.

    Every process has to call it. A model that is loaded there is whole.

    Raises:
        DensepathError: in the others, that the first one stopped, which raises what stopped it.
    """
    if process_count() == 1:
        with loaded_whole():
            return compute()
    said: list[Any] = [None, "it was interrupted"]
    try:
        if is_first():
            with loaded_whole():
                said = [compute(), None]
    except Exception as error:
        said[1] = str(error)
        raise
    finally:
        distributed.broadcast_object_list(said, src=0)
    if said[1] is not None:
        raise DensepathError(f"the first process stopped: {said[1]}")
    return cast(T, said[0])
