"""The sizes of a model that decide its memory, read off a copy on the meta device: no weights, no network needed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from densepath.errors import ModelError
from densepath.models import locate, smollm2
from densepath.models.compat import context_length


@dataclass(frozen=True)
class Architecture:
    """Sizes of a dense decoder; parameters and widths are numbers of elements, not bytes.

    Attributes:
        name: as it was asked for.
        parameters: all of them, tied ones once.
        tied: the head is the token embedding.
        windows: for each decoder layer, tokens that its cache keeps at most; None: all.
        hidden: width of the residual stream.
        intermediate: width of the gated MLP.
        query: heads x width of a head.
        key: key-value heads x width of a head.
        normed: numbers that one layer normalises for a token.
        vocabulary: rows of the embedding.
        context: positions.
        linears: linear maps of one layer, by the last part of a name: the widths they read and write.
        saved: bytes of a weight as it was saved, which `dtype: auto` keeps; 4 where the configuration does not say.
    """

    name: str
    parameters: int
    tied: bool
    windows: tuple[int | None, ...]
    hidden: int
    intermediate: int
    query: int
    key: int
    normed: int
    vocabulary: int
    context: int
    linears: Mapping[str, tuple[int, int]]
    saved: int = 4

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return len(self.windows)

    @property
    def embedding(self) -> int:
        """Parameters of the token embedding."""
        return self.vocabulary * self.hidden

    @property
    def layer_linears(self) -> int:
        """Parameters of one layer's linear maps."""
        return sum(inputs * outputs for inputs, outputs in self.linears.values())

    def adapter(self, rank: int, targets: Collection[str] | None = None) -> int:
        """Parameters of a LoRA adapter on all linear maps of the layers, or those named: `L sum_m r (in_m + out_m)`.

        A target means every module whose name ends so, as for PEFT: `self_attn.q_proj` is `q_proj`. The head and the
        embedding stand outside of the layers and are meant by name alone: `all-linear` of PEFT leaves the head out.

        Source: Hu et al. 2021, LoRA, section 4.1.
        """
        names = set() if targets is None else _last_parts(targets)
        inside = sum(map(sum, self._targeted(targets)))
        outside = len({"lm_head", "embed_tokens"} & names) * (self.hidden + self.vocabulary)
        return rank * (self.layers * inside + outside)

    def adapter_reads(self, targets: Collection[str] | None = None) -> int:
        """Numbers of a token that a LoRA adapter on these targets reads in one layer: `sum_m in_m`."""
        return sum(inputs for inputs, _ in self._targeted(targets))

    def _targeted(self, targets: Collection[str] | None) -> list[tuple[int, int]]:
        """Widths of the linear maps of a layer that a LoRA adapter stands on."""
        names = None if targets is None else _last_parts(targets)
        return [widths for name, widths in self.linears.items() if names is None or name in names]


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
    path = Path(name_or_path)
    known = known_configurations().get(smollm2.NAME if path.name == smollm2.NAME else name_or_path)
    if known is not None and not path.exists():
        values = {key: value for key, value in known.items() if key not in ("names", "model_type")}
        return CONFIG_MAPPING[known["model_type"]](**values)
    source = locate.locate(name_or_path)
    if locate.is_adapter(source):
        return configuration_of(locate.adapter_base(source), trust_remote_code=trust_remote_code)
    with locate.explained(source, "configuration"):
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    text = config.get_text_config(decoder=True)
    text.dtype = text.dtype or config.dtype
    return text


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
    with locate.explained(name_or_path, "configuration"), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return read_architecture(model, name_or_path)


def read_architecture(model: PreTrainedModel, name: str) -> Architecture:
    """The sizes of a model that exists, on the meta device or with weights.

    Raises:
        ModelError: it is no dense decoder with gated MLPs.
    """
    config = model.config.get_text_config(decoder=True)
    count = config.num_hidden_layers
    lists = (each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == count)
    layers = next(lists, nn.ModuleList())
    maps = [_linears(layer) for layer in layers] or [{}]
    first = maps[0]
    gated = "down_proj" in first and ("gate_proj" in first or "gate_up_proj" in first)
    # Experts and convolutions are matrices outside of the linear maps, or maps of the same name.
    matrices = sum(each.numel() for layer in layers[:1] for each in layer.parameters() if each.dim() > 1)
    if not gated or any(each != first for each in maps) or matrices != sum(a * b for a, b in first.values()):
        raise ModelError(
            f"{name}: densepath plan has formulas for dense decoders with gated MLPs (Llama, Qwen, Mistral, Gemma and "
            f"their relatives), and {config.model_type} is none"
        )
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings().weight
    saved = config.dtype or torch.float32  # a name where no model was made of it yet
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    query = config.num_attention_heads * width
    key = (getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * width
    norms = [each.rpartition(".")[2] for each, _ in layers[0].named_modules()]
    return Architecture(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        tied=head is not None and head.weight is embedding,
        windows=_windows(config),
        hidden=config.hidden_size,
        intermediate=first["down_proj"][0],
        query=query,
        key=key,
        normed=sum({"q_norm": query, "k_norm": key}.get(norm, config.hidden_size) for norm in norms if "norm" in norm),
        vocabulary=embedding.shape[0],
        context=context_length(model),
        linears=first,
        saved=(getattr(torch, saved) if isinstance(saved, str) else saved).itemsize,
    )


def _last_parts(targets: Collection[str]) -> set[str]:
    return {target.rpartition(".")[2] for target in targets}


def _linears(layer: nn.Module) -> dict[str, tuple[int, int]]:
    maps = ((name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear))
    return {name.rpartition(".")[2]: (module.in_features, module.out_features) for name, module in maps}


def _windows(config: Any) -> tuple[int | None, ...]:
    """For each layer the tokens that its attention reaches back, or None."""
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
