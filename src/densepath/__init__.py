"""densepath: the dense reward hidden in supervised fine-tuning, and Dense-Path REINFORCE on it.

Names are imported on first use, so that `import densepath` and `densepath --help` answer at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["__version__"]

if TYPE_CHECKING:
    pass

_EXPORTS: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        from importlib import import_module

        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'densepath' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
