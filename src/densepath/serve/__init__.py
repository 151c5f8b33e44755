"""The dense reward over HTTP. All but `settings`, `engine` and `errors` needs the extra `serve`."""

from __future__ import annotations

from importlib.util import find_spec

from densepath.errors import UsageError

_PACKAGES = ("fastapi", "uvicorn", "pydantic", "prometheus_client", "fastapi_offline")


def require_extra(command: str = "serve") -> None:
    """Refuse to go on where a package of the extra is missing.

    Args:
        command: what needs it.

    Raises:
        UsageError: names what is missing, and how to install it.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        names = " ".join(name.replace("_", "-") for name in missing)
        raise UsageError(f"densepath {command} needs packages that are missing: pip install {names}")
