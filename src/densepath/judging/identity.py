"""What stands behind a judge's name: digests of the model, reward, program or template that decides what it says."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

from densepath.config.judge import parse_judge
from densepath.data.rows import canonical_json
from densepath.evals.verifiers import VERIFIERS, get_verifier
from densepath.io import file_sha256
from densepath.judging.templates import Template

_DIGITS = 16  # of a SHA-256, in hex


def judge_identity(judge: str) -> dict[str, str]:
    """Digests of what a judge's name leads to now, by what they are of; loads no weights.

    None of an endpoint, whose model nobody sees, of a verifier of ours, and of a hub id that is not in the cache.

    Args:
        judge: such as `local:FOLDER`.

    Raises:
        ConfigError: no such verifier, or a file that is no reward.
        MissingFileError, ModelError: a model or reward that is not there, or that cannot be one.
    """
    kind, name = parse_judge(judge)
    if kind == "openai":
        return {}
    if kind == "verifier":
        return {} if name in VERIFIERS else _source(name)
    return _reward(name) if kind == "dense" else _model(name)


def verifier_inputs(verifier: str | None) -> dict[str, str]:
    """`verifier source` -> digest of the program that checks answers; none without one, and of ours.

    Raises:
        ConfigError: no such verifier.
    """
    found = {} if verifier is None else judge_identity(f"verifier:{verifier}")
    return {f"verifier {part}": digest for part, digest in found.items()}


def template_digest(template: Template) -> str:
    """Of all that a template says, wherever its file lies."""
    return _digest(asdict(template))


def _source(verifier: str) -> dict[str, str]:
    """Of the module that is named, and of the file that the function is from if that is another."""
    function: Any = inspect.unwrap(get_verifier(verifier))
    module = importlib.import_module(verifier.partition(":")[0])
    code = getattr(function, "__code__", None)  # an object that is called has none
    files = {getattr(module, "__file__", None), code.co_filename if code else None}
    digests = sorted(file_sha256(Path(file)) for file in files if file and Path(file).is_file())
    return {"source": _digest(digests)} if digests else {}


def _reward(name: str) -> dict[str, str]:
    from densepath.rewards.dense import saved_reward

    settings, models = saved_reward(name)
    found = {"reward": _digest(settings)}
    for number, model in enumerate(models):
        role = f"reference {number}" if number else "SFT model"
        found |= {f"{role} {part}": digest for part, digest in _model(model).items()}
    return found


def _model(name: str) -> dict[str, str]:
    from densepath.models import locate
    from densepath.models.identity import model_identity

    source = locate.locate(name)
    if Path(source).is_dir() and not locate.is_adapter(source):
        locate.check_model_folder(source)
    return model_identity(source)


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:_DIGITS]
