"""The sizes of a model that decide its memory, read off a copy on the meta device: no weights, no network needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from densepath.errors import ModelError
from densepath.models import locate, smollm2
from densepath.models.compat import context_length


class Linear(NamedTuple):
    """One linear map of a decoder layer: the last part of its module's name, and the widths it reads and writes."""

    name: str
    inputs: int
    outputs: int


@dataclass(frozen=True)
class Architecture:
    """Sizes of a dense decoder; parameters and widths are numbers of elements, not bytes.

    Attributes:
        name: as it was asked for.
        family: transformers' `model_type`.
        parameters: all of them, tied ones once.
        embedding: of the token embedding, which is the head too where `tied`.
        tied: the head is the embedding.
        layers: decoder layers.
        windows: tokens that each layer's cache keeps at most; None: all.
        hidden: width of the residual stream.
        intermediate: width of the gated MLP.
        query: heads x width of a head.
        key: key-value heads x width of a head.
        norms: normalisations of a layer over the residual stream (2; 4 in Gemma 3).
        query_norm: queries and keys are normalised.
        vocabulary: rows of the embedding.
        context: positions.
        linears: linear maps of one layer; all layers have the same.
    """

    name: str
    family: str
    parameters: int
    embedding: int
    tied: bool
    layers: int
    windows: tuple[int | None, ...]
    hidden: int
    intermediate: int
    query: int
    key: int
    norms: int
    query_norm: bool
    vocabulary: int
    context: int
    linears: tuple[Linear, ...]

    @property
    def packs(self) -> bool:
        """Full attention in every layer, so that rows can be packed; padded otherwise."""
        return all(window is None for window in self.windows)

    @property
    def layer_linears(self) -> int:
        """Parameters of one layer's linear maps."""
        return sum(linear.inputs * linear.outputs for linear in self.linears)


@lru_cache(maxsize=1)
def known_configurations() -> Mapping[str, Mapping[str, Any]]:
    """Name -> configuration values of the models that ship with densepath."""
    text = (resources.files("densepath.planning") / "architectures.yaml").read_text(encoding="utf-8")
    return {name: entry for entry in yaml.safe_load(text) for name in entry["names"]}


def configuration_of(name_or_path: str, *, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of a model, its text part where it has several.

    A folder's config.json is read; an adapter folder stands for its base. A name that densepath ships
    (`architectures.yaml`) needs no network, so that a plan is the same on every machine; any other is asked of the
    hub, or of its cache.

    Raises:
        MissingFileError: a path that is not there.
        ModelError: neither a folder, nor known, nor to be had from the hub.
    """
    known = known_configurations().get(name_or_path)
    if known is None and Path(name_or_path).name == smollm2.NAME and not Path(name_or_path).exists():
        known = known_configurations()[smollm2.NAME]
    if known is not None and not Path(name_or_path).is_dir():
        values = {key: value for key, value in known.items() if key not in ("names", "model_type")}
        return CONFIG_MAPPING[known["model_type"]](**values)
    source = locate.locate(name_or_path)
    if locate.is_adapter(source):
        return configuration_of(locate.adapter_base(source), trust_remote_code=trust_remote_code)
    with locate.explained(source, "configuration"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    return config.get_text_config(decoder=True)


def meta_model(config: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """A model of this configuration on the meta device: shapes without storage."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


def architecture_of(name_or_path: str, *, trust_remote_code: bool = False) -> Architecture:
    """The sizes of a model, by its configuration alone.

    Args:
        name_or_path: as for `load_model`.
        trust_remote_code: run Python code that comes with the model.

    Raises:
        MissingFileError: a path that is not there.
        ModelError: its configuration cannot be had, or it is no dense decoder with gated MLPs, for which alone
            there are formulas.
    """
    config = configuration_of(name_or_path, trust_remote_code=trust_remote_code)
    with locate.explained(name_or_path, "configuration"):
        model = meta_model(config, trust_remote_code=trust_remote_code)
    return read_architecture(model, name_or_path)


def read_architecture(model: PreTrainedModel, name: str) -> Architecture:
    """The sizes of a model that exists, on the meta device or with weights.

    Raises:
        ModelError: it is no dense decoder with gated MLPs.
    """
    config = model.config.get_text_config(decoder=True)
    layers = _decoder_layers(model, config, name)
    shapes = [_linears(layer) for layer in layers]
    first = {linear.name: linear for linear in shapes[0]}
    gated = "down_proj" in first and ("gate_proj" in first or "gate_up_proj" in first)
    if not gated or any(shape != shapes[0] for shape in shapes) or _is_sparse(layers[0]):
        raise ModelError(
            f"{name}: densepath plan has formulas for dense decoders with gated MLPs (Llama, Qwen, Mistral, Gemma and "
            f"their relatives), and {config.model_type} is none"
        )
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return Architecture(
        name=name,
        family=config.model_type,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        embedding=embedding.numel(),
        tied=head is not None and head.weight is embedding,
        layers=len(layers),
        windows=_windows(config, len(layers)),
        hidden=config.hidden_size,
        intermediate=first["down_proj"].inputs,
        query=config.num_attention_heads * width,
        key=key_heads * width,
        norms=sum("norm" in key for key, _ in layers[0].named_children()),
        query_norm=any(key.endswith("q_norm") for key, _ in layers[0].named_modules()),
        vocabulary=embedding.shape[0],
        context=context_length(model),
        linears=shapes[0],
    )


def _decoder_layers(model: nn.Module, config: Any, name: str) -> list[nn.Module]:
    count = config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError(f"{name}: no list of {count} decoder layers in {type(model).__name__}: densepath cannot plan it")


def _linears(layer: nn.Module) -> tuple[Linear, ...]:
    return tuple(
        Linear(name.rpartition(".")[2], module.in_features, module.out_features)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    )


def _is_sparse(layer: nn.Module) -> bool:
    """Whether part of a layer's parameters lies outside of its linear maps and vectors: experts, convolutions."""
    in_linears = {id(p) for module in layer.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
    return any(parameter.dim() > 1 for parameter in layer.parameters() if id(parameter) not in in_linears)


def _windows(config: Any, layers: int) -> tuple[int | None, ...]:
    """For each layer the tokens that its attention reaches back, or None."""
    window = getattr(config, "sliding_window", None)
    if window is None or getattr(config, "use_sliding_window", True) is False:
        return (None,) * layers
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
