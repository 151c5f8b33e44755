"""Models of a dense reward by name: one base in memory for all adapters on it, one tokenizer for all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from densepath.models import locate
from densepath.models.adapters import free_name, load_frozen_adapter, own_adapter
from densepath.models.compat import changes_base, check_same_tokenizer, embedding_rows, shares_base, weights_differ
from densepath.models.load import load_model, load_tokenizer
from densepath.rewards.frozen import FrozenPolicy


def load_policies(
    names: Sequence[str | Path],
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    model_init_kwargs: Mapping[str, Any] | None = None,
) -> list[FrozenPolicy]:
    """The models as frozen policies; adapters of one base, and that base itself, share it in memory.

    Args:
        names: hub ids, model folders, adapter folders or catalogue names.
        dtype: of the weights; scorers stay float32 (`load_model`).
        device: None leaves them on the CPU; "auto" takes CUDA where there is one.
        trust_remote_code: run Python code that comes with the weights.
        model_init_kwargs: as for `load_model`.

    Raises:
        MissingFileError, ModelError: see `load_model`.
    """
    options: dict[str, Any] = {"dtype": dtype, "device": device, "trust_remote_code": trust_remote_code}
    options["model_init_kwargs"] = model_init_kwargs
    sources = [locate.locate(name) for name in names]
    bases = [locate.locate(locate.adapter_base(s)) if shares_base(s) else s for s in sources]
    shared = {base for source, base in zip(sources, bases, strict=True) if source != base}
    models: dict[str, Any] = {}
    adapters: dict[str, str] = {}
    policies = []
    for source, base in zip(sources, bases, strict=True):
        if base not in models:
            # A base that has adapters is loaded with the first of them, whatever comes first in the list.
            first = next(s for s, b in zip(sources, bases, strict=True) if b == base and (s != b or b not in shared))
            models[base] = load_model(first, **options)
            if base in shared:
                adapters[first] = "default"
        model = models[base]
        if base not in shared:
            policies.append(FrozenPolicy(model))
        elif source == base:
            policies.append(FrozenPolicy(model, None))
        else:
            if source not in adapters:
                adapters[source] = f"adapter_{len(adapters)}"
                load_frozen_adapter(model, source, adapters[source])
            policies.append(FrozenPolicy(model, adapters[source]))
    return policies


def load_common_tokenizer(
    sft: str | Path, refs: Sequence[str | Path] = (), *, trust_remote_code: bool = False, **settings: Any
) -> Any:
    """The SFT model's tokenizer, after a look that each reference gives every id the same meaning.

    Args:
        sft: the SFT model.
        refs: the references, whose tokenizers read no text.
        trust_remote_code: run Python code that comes with a tokenizer.
        settings: `eos_token`, `chat_template_path` and `chat_template_kwargs` of `load_tokenizer`.

    Warns (`UserWarning`) of a reference with the weights of the SFT model: its reward is zero everywhere.

    Raises:
        ModelError: tokenizers that differ; the message says where.
    """
    tokenizer = load_tokenizer(sft, trust_remote_code=trust_remote_code, **settings)
    for ref in refs:
        other = load_tokenizer(ref, trust_remote_code=trust_remote_code)
        check_same_tokenizer(tokenizer, other, special_tokens=False)
        if not weights_differ(sft, ref):
            warnings.warn(f"{ref} and {sft} have the same weights: the reward is zero everywhere", stacklevel=2)
    return tokenizer


def view_on_base(policy: Any, name_or_path: str | Path, adapter_name: str) -> FrozenPolicy | None:
    """A model as a view of a PEFT policy's base in memory: the base itself, or an adapter of it.

    Args:
        policy: PEFT model with one active adapter, or a plain model.
        name_or_path: what `load_model` takes.
        adapter_name: what the adapter is called on the base; with a number behind where another one has the name.

    Returns:
        The view; None where the policy is a plain model, the model is another one, or the policy's adapter or the
        model's changes the base itself (resized embeddings, trained biases, PiSSA).

    Raises:
        MissingFileError, ModelError: an adapter of this base that cannot be loaded.
    """
    if not isinstance(policy, PeftModel):
        return None
    config = policy.peft_config[own_adapter(policy)]
    base = None if changes_base(config) else config.base_model_name_or_path
    source = locate.locate(name_or_path)
    if not base:
        return None
    model = policy.get_base_model()
    if getattr(model, "_densepath_replaced", False) or embedding_rows(model) != _rows_of(base, model):
        return None  # an adapter of its own embeddings lies on it
    if locate.same_model(source, base):
        return FrozenPolicy(policy, None)
    if shares_base(source) and locate.same_model(locate.adapter_base(source), base):
        adapter_name = free_name(policy, adapter_name)
        load_frozen_adapter(policy, source, adapter_name)
        return FrozenPolicy(policy, adapter_name)
    return None


def _rows_of(base: str, model: Any) -> int:
    """Embedding rows that the base has on disk, as its configuration says; those in memory where it says nothing."""
    with locate.explained(base, "model"):
        config = type(model.config).from_pretrained(base)
    rows = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    written = getattr(model.config.get_text_config(), "vocab_size", None)
    return embedding_rows(model) if rows is None or rows == written else int(rows)
