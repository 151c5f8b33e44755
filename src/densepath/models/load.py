"""Models and tokenizers from a hub id, a folder, an adapter folder or the catalogue: safetensors only, frozen."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from densepath.data.tokenizer_calls import keep_template_defaults
from densepath.errors import MissingFileError, ModelError, UsageError
from densepath.models import locate
from densepath.models.compat import (
    check_vocabulary,
    context_length,
    embedding_rows,
    embeddings_of_adapter,
    eos_token_ids,
    replaced_weights,
    shares_base,
)
from densepath.models.linear import choose_library
from densepath.models.quantized import is_quantized, quantized

__all__ = [
    "DTYPES",
    "check_vocabulary",
    "context_length",
    "disable_dropout",
    "dtype_of",
    "eos_token_ids",
    "freeze",
    "load_frozen",
    "load_model",
    "load_tokenizer",
    "load_trainable",
    "model_context",
]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
"""The names that `dtype` accepts, besides "auto" (as the weights were saved)."""


def load_model(
    name_or_path: str | Path,
    *,
    dtype: str | torch.dtype = "float32",
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    adapter: str | Path | None = None,
    merge: bool = False,
    for_training: bool = False,
    model_init_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """A causal language model, frozen unless `for_training`; of Gemma 3 with pictures, the text part.

    Args:
        name_or_path: hub id, model folder, PEFT adapter folder (its base is loaded first) or catalogue name.
        dtype: of the weights; a key of `DTYPES` or "auto". Scorers stay float32: bfloat16 adds noise of
            0.08 nats per token (docs/reward.md), which does not shrink as the two models come closer.
        device: None leaves the model on the CPU; "auto" takes CUDA where there is one.
        trust_remote_code: run Python code that comes with the weights.
        adapter: PEFT adapter folder or hub id to put on top of `name_or_path`.
        merge: fold the adapter into the base weights; otherwise, and on a quantised base, whose weights would be
            rounded again, a `PeftModel` is returned.
        for_training: train mode, the base trainable (with an adapter: the adapter alone), dropout as configured.
        model_init_kwargs: further arguments of `from_pretrained` for the base: `attn_implementation`, `revision`,
            `quantization_config`, or `load_in_4bit` for that of QLoRA (`models.quantized`).

    Returns:
        The model; unless `for_training` in eval mode, with dropout zeroed and no parameter requiring a gradient.

    Raises:
        MissingFileError: a folder that was named is not there.
        ModelError: it cannot be loaded: not found, no network, no safetensors, damaged or incomplete weights.
        UsageError: an unknown dtype or device, a dtype among `model_init_kwargs`, or two adapters at once.
    """
    torch_dtype = dtype_of(dtype)
    source = locate.locate(name_or_path)
    adapters = [locate.locate(adapter)] if adapter is not None else []
    if locate.is_adapter(source):
        if adapters:
            raise UsageError(f"{name_or_path} is an adapter itself: give its base model together with adapter=")
        adapters = [source]
        source = locate.adapter_base(source)
        if locate.is_adapter(source):
            raise ModelError(f"{name_or_path}: its base {source} is an adapter too; merge that one first")
    for folder in adapters:
        locate.check_adapter_folder(folder)

    if given := {"dtype", "torch_dtype"} & set(model_init_kwargs or {}):
        raise UsageError(f"model_init_kwargs holds {', '.join(sorted(given))}: give dtype beside it")
    kwargs = quantized(model_init_kwargs or {}, torch_dtype)
    model = _load_base(source, dtype=torch_dtype, trust_remote_code=trust_remote_code, **kwargs)
    merge = merge and not is_quantized(model)
    for folder in adapters:
        model = _add_adapter(model, folder, trainable=for_training and not merge, merge=merge)
        if not merge:  # where the base really lies: what is saved from here on names it
            model.peft_config["default"].base_model_name_or_path = source
    if (target := device_of(device)) is not None:
        model = model.to(target)
    choose_library(model)
    _multiply_as_said(model)
    if for_training:
        return model.train()
    disable_dropout(model)
    return freeze(model)


class LoadOptions(Protocol):
    """What a command's arguments say about loading: keywords of `load_model`."""

    def model_options(self) -> dict[str, Any]:
        """`dtype` of the weights, whether code may come with them, and how they are quantised."""


def load_frozen(options: LoadOptions, path: str | Path, device: str = "auto") -> Any:
    """A model that is only sampled from and scored: adapters folded in, by default on the GPU where there is one."""
    return load_model(path, merge=True, device=device, **options.model_options())


def load_trainable(options: LoadOptions, path: str | Path) -> Any:
    """A model to train; the trainer moves it to its device."""
    return load_model(path, for_training=True, **options.model_options())


def model_context(name_or_path: str, trust_remote_code: bool = False) -> int:
    """Context length of a model in tokens, from its configuration alone."""
    source = locate.locate(name_or_path)
    if locate.is_adapter(source):
        source = locate.adapter_base(source)
    with locate.explained(source, "configuration"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    return context_length(SimpleNamespace(config=config))


def load_tokenizer(
    name_or_path: str | Path,
    *,
    trust_remote_code: bool = False,
    eos_token: str | None = None,
    chat_template_path: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """A tokenizer that pads on the left and has a pad token (EOS where it had none).

    Args:
        name_or_path: as for `load_model`; an adapter folder without a tokenizer gives that of its base.
        trust_remote_code: run Python code that comes with the tokenizer.
        eos_token: take this token of its vocabulary for EOS: where the chat template ends turns with another than
            the tokenizer says (Gemma 3: `<end_of_turn>`).
        chat_template_path: take this chat template: a Jinja file, or that of another tokenizer by its name.
        chat_template_kwargs: arguments of the chat template, such as `enable_thinking`. They become part of the
            tokenizer, which keeps them where it is saved: a later stage renders as this one does.

    Raises:
        MissingFileError: a folder that was named is not there.
        ModelError: there is no tokenizer, or it has no end-of-sequence token, or not the one that was given.
    """
    source = locate.locate(name_or_path)
    if locate.is_adapter(source) and not locate.has_tokenizer(source):
        source = locate.adapter_base(source)
    if Path(source).is_dir() and not locate.has_tokenizer(source):
        raise ModelError(f"{source}: no tokenizer.json in this folder: save the tokenizer beside the model")
    with locate.explained(source, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise ModelError(f"{source}: its tokenizer has no token {eos_token!r}: give another eos_token, or none")
        tokenizer.eos_token = eos_token
    if chat_template_path is not None:
        tokenizer.chat_template = _chat_template(chat_template_path, tokenizer, trust_remote_code)
    keep_template_defaults(tokenizer, chat_template_kwargs or {})
    if tokenizer.eos_token_id is None:
        raise ModelError(f"{source}: the tokenizer has no eos_token; set one in its tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _chat_template(path: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> Any:
    """The text of a Jinja file, or the chat template of another tokenizer that needs no token which this one lacks."""
    file = Path(path).expanduser()
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ModelError(f"chat_template_path={path}: not UTF-8 text ({error.reason}); save it as UTF-8") from None
    if file.suffix in (".jinja", ".j2", ".txt"):
        raise MissingFileError(f"chat_template_path={path}: no such file; check the path")
    source = locate.locate(path)
    with locate.explained(source, "tokenizer"):
        other = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    if not other.chat_template:
        raise ModelError(f"chat_template_path={path}: that tokenizer has no chat template; choose another")
    written = [token for token in other.get_added_vocab() if token in str(other.chat_template)]
    if missing := [token for token in written if token not in tokenizer.get_vocab()]:
        raise ModelError(
            f"chat_template_path={path}: its template writes {', '.join(missing)}, which the model's tokenizer "
            "lacks; add the tokens and resize the embeddings first (trl.clone_chat_template does both)"
        )
    return other.chat_template


def freeze(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in eval mode with every parameter's `requires_grad` off."""
    model.requires_grad_(False)
    return model.eval()


def disable_dropout(model: nn.Module) -> int:
    """Set every dropout probability to zero, so that train mode computes what eval mode does.

    Covers `nn.Dropout` modules (those of adapters included), the float attributes that attention modules keep
    (`attention_dropout` and the like), and the same entries of the configuration and its nested text part.

    Returns:
        How many probabilities were not zero before.
    """
    changed = 0
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p != 0.0:
            module.p = 0.0
            changed += 1
        changed += _zero_dropout_attributes(module)
    config = getattr(model, "config", None)
    if config is not None:
        nested = config.get_text_config() if hasattr(config, "get_text_config") else config
        for part in (config,) if nested is config else (config, nested):
            changed += _zero_dropout_attributes(part)
    return changed


def _zero_dropout_attributes(owner: object) -> int:
    """Zero the float attributes named like a dropout probability; how many were not zero."""
    names = [
        name
        for name, value in vars(owner).items()
        if isinstance(value, float) and value != 0.0 and ("dropout" in name or name.endswith("pdrop"))
    ]
    for name in names:
        setattr(owner, name, 0.0)
    return len(names)


def _multiply_as_said(model: nn.Module) -> None:
    """Keep bitsandbytes from repacking 4-bit weights on a CPU when it scores.

    Gradients stop at repacked ones, and they are multiplied in bfloat16 whatever type was asked for.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - an attribute of bitsandbytes' own


def dtype_of(dtype: str | torch.dtype) -> str | torch.dtype:
    """The type that a name means; "auto", as the weights were saved, stays what it is.

    Raises:
        UsageError: no key of `DTYPES`.
    """
    if isinstance(dtype, torch.dtype) or dtype == "auto":
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is not one of {', '.join([*DTYPES, 'auto'])}")
    return DTYPES[dtype]


def device_of(device: str | torch.device | None) -> torch.device | None:
    """The device that a name means, "auto" as CUDA where there is one; None stays None.

    Raises:
        UsageError: torch does not know it, or finds no CUDA device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device is None:
        return None
    try:
        target = torch.device(device)
    except RuntimeError:
        raise UsageError(f"device {device!r} is not one torch knows: give cpu, cuda, cuda:1 or auto") from None
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, and torch finds no CUDA device: use cpu or auto")
    return target


def _load_base(source: str, *, dtype: str | torch.dtype, trust_remote_code: bool, **kwargs: Any) -> PreTrainedModel:
    """The plain model at `source`; every weight it has must be in the files."""
    locate.check_model_folder(source)
    with locate.explained(source, "model"):
        language = text_part(source, trust_remote_code, kwargs.get("revision"))
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **{**language, **kwargs},
        )
    if language:
        model._weight_conversions = None  # saved under its own names, not under those of the whole model
    missing = sorted(info["missing_keys"])
    if missing:
        raise ModelError(
            f"{source}: {len(missing)} weights are not in its files and would be random, {missing[0]} among them: "
            "save the whole model again"
        )
    loaded: PreTrainedModel = model
    return loaded


def text_part(source: str, trust_remote_code: bool, revision: str | None) -> dict[str, Any]:
    """What `from_pretrained` needs to load the language model alone out of a model that also sees pictures.

    Only for families whose text part is a model of its own under known names: the rest of the weights would take
    memory, get adapters, and in DDP wait for gradients that never come.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, revision=revision)
    prefix = _TEXT_PARTS.get(config.model_type)
    return {} if prefix is None else {"config": config.get_text_config(decoder=True), "key_mapping": {prefix: ""}}


_TEXT_PARTS = {"gemma3": r"^language_model\."}


def _add_adapter(model: PreTrainedModel, folder: str, *, trainable: bool, merge: bool) -> Any:
    from peft import PeftModel

    if merge and any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ModelError(
            f"{folder} cannot be merged into its base, which DeepSpeed ZeRO-3 loads in pieces: save it merged, or "
            "take ZeRO-2"
        )
    with locate.explained(folder, "adapter"), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")  # they would stay random
        if replaced_weights(folder):
            rows = embeddings_of_adapter(folder, model)
            if rows != embedding_rows(model):  # they were resized before the adapter was trained
                model.resize_token_embeddings(rows, mean_resizing=False)
        try:
            peft_model = PeftModel.from_pretrained(model, folder, is_trainable=trainable)
        except UserWarning as warning:
            raise ModelError(f"{folder}: weights of the adapter are missing: {str(warning)[:200]}") from warning
        model._densepath_replaced = not shares_base(folder)
        return peft_model.merge_and_unload().requires_grad_(True) if merge else peft_model
