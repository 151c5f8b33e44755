"""Policy, SFT model and reference as adapters over one base in memory: frozen copies, and switching between them."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import nn

from densepath.errors import ConfigError, ModelError, UsageError
from densepath.models import locate
from densepath.models.compat import changes_base
from densepath.models.identity import record_base


def own_adapter(peft_model: PeftModel) -> str:
    """Name of the adapter that a PEFT model computes with: the one that is trained and saved.

    Raises:
        ConfigError: several are active at once.
    """
    names: list[str] = peft_model.active_adapters
    if len(names) != 1:
        raise ConfigError(
            f"the adapters {', '.join(names)} are active at once: choose one with model.set_adapter(NAME)"
        )
    return names[0]


def save_own_adapter(peft_model: PeftModel, folder: str | Path, **keywords: Any) -> None:
    """Save the active adapter alone, at the top of the folder, where it is loaded from whatever it is called here.

    Args:
        peft_model: the model.
        folder: where to.
        keywords: of PEFT's `save_pretrained`.

    Raises:
        ConfigError: several adapters are active at once.
    """
    name = own_adapter(peft_model)
    # By the class: a trainer may have put this function in the model's own attribute.
    PeftModel.save_pretrained(peft_model, str(folder), selected_adapters=[name], **keywords)
    below = Path(folder) / name  # where PEFT puts an adapter that is not called "default"
    if name != "default" and keywords.get("is_main_process", True):
        for path in below.iterdir():
            path.replace(Path(folder) / path.name)
        below.rmdir()


class SavesOwnAdapter:
    """A trainer that saves the active adapter of a PEFT model alone, whatever it is called; other models as ever.

    By itself PEFT saves every adapter, those that are not called `default` in folders of their own: the best model is
    then not found, or is another adapter's.
    """

    accelerator: Any
    args: Any
    model: Any

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        save, model = super()._save, self.accelerator.unwrap_model(self.model)  # type: ignore[misc]
        if not isinstance(model, PeftModel):
            save(output_dir, state_dict)
            return
        model.save_pretrained = functools.partial(save_own_adapter, model)
        try:
            save(output_dir, state_dict)
        finally:
            del model.save_pretrained
        record_base(Path(output_dir if output_dir is not None else self.args.output_dir))


def free_name(model: Any, wanted: str) -> str:
    """The name for one more adapter: the wanted one, with a number behind where an adapter has it already."""
    taken = getattr(model, "peft_config", {})
    names = itertools.chain([wanted], (f"{wanted}_{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def add_frozen_copy(peft_model: PeftModel, source: str = "default", name: str = "sft") -> None:
    """Add adapter `name` with the present weights of `source`: frozen, without dropout, not active.

    Gradient flags, modes and the active adapter of the rest stay as they are.

    Raises:
        UsageError: there is no adapter `source`, or already one called `name`.
        ModelError: the adapter consists of virtual prompt tokens.
    """
    _check_name(peft_model, name)
    _check_known(peft_model, source)
    config = _frozen(peft_model.peft_config[source])
    _check_apart(config, source)
    weights = {key: tensor.detach().clone() for key, tensor in _state(peft_model, source).items()}
    with _unchanged(peft_model):
        # No cast to float32: the copy must be the same function, to the last bit.
        peft_model.add_adapter(name, config, autocast_adapter_dtype=False)
        _cast_like(peft_model, source, name)
        set_peft_model_state_dict(peft_model, weights, adapter_name=name)
    if adapters_differ(peft_model, source, name):
        raise ModelError(f"the copy {name!r} of adapter {source!r} does not have its weights: is its type supported?")
    _freeze(peft_model, name)


def load_frozen_adapter(peft_model: PeftModel, path: str | Path, name: str) -> None:
    """Load a saved adapter as `name` beside those that are there: frozen, without dropout, not active.

    Raises:
        UsageError: there is already an adapter called `name`.
        MissingFileError: the folder is not there.
        ModelError: it is no adapter, does not fit this base, or lacks weights.
    """
    _check_name(peft_model, name)
    source = locate.locate(path)
    locate.check_adapter_folder(source)
    try:
        with locate.explained(source, "adapter"), _unchanged(peft_model):
            config = _frozen(PeftConfig.from_pretrained(source))
            _check_apart(config, source)
            peft_model.add_adapter(name, config)
            weights = load_peft_weights(source, device=str(next(peft_model.parameters()).device))
            result = set_peft_model_state_dict(peft_model, weights, adapter_name=name)
        missing = [key for key in result.missing_keys if name in key.split(".")]
        if missing:
            raise ModelError(f"{path}: {len(missing)} weights of the adapter are missing, {missing[0]} among them")
    except ModelError:
        if name in peft_model.peft_config:
            with _unchanged(peft_model):
                peft_model.delete_adapter(name)
        raise
    _freeze(peft_model, name)


@contextlib.contextmanager
def active_adapter(peft_model: PeftModel, name: str | None) -> Iterator[None]:
    """The model computes with adapter `name` inside the block; None: with the base alone.

    PEFT's own `set_adapter` also switches gradient flags on and off; here they stay as they are, inside and after.
    Afterwards the active adapter, every `requires_grad` and every module's train or eval mode are what they were,
    exceptions included. Blocks may be nested. Run backward passes outside of it only where no activation
    checkpointing recomputes a forward pass of the inside.

    Raises:
        UsageError: there is no adapter `name`.
    """
    if name is not None:
        _check_known(peft_model, name)
    with _unchanged(peft_model) as restore_flags:
        if name is None:
            peft_model.base_model.disable_adapter_layers()
        else:
            peft_model.base_model.enable_adapter_layers()
            peft_model.set_adapter(name)
        restore_flags()
        yield


class AdapterView:
    """One adapter of a PEFT model, or its bare base, called like a model of its own whatever adapter is active.

    A call switches the layers there and back, which costs a few per cent of a decoding step. All else is the PEFT
    model's. `adapter_view` makes one.
    """

    def __init__(self, peft_model: PeftModel, name: str | None) -> None:
        self._peft_model, self._name = peft_model, name
        self._layers = [
            (layer, list(layer.active_adapters), layer.disable_adapters) for layer in _tuner_layers(peft_model)
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._peft_model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The PEFT model's forward pass with this adapter alone."""
        try:
            for layer, active, _ in self._layers:
                _switch(layer, active if self._name is None else [self._name], disabled=self._name is None)
            return self._peft_model(*args, **kwargs)
        finally:
            for layer, active, disabled in self._layers:
                _switch(layer, active, disabled=disabled)


@contextlib.contextmanager
def adapter_view(peft_model: PeftModel, name: str | None) -> Iterator[AdapterView]:
    """Adapter `name`, or with None the base alone, beside the adapter that is active: both are called in turn.

    For passes without gradient. Afterwards everything is as `active_adapter` leaves it.

    Raises:
        UsageError: there is no adapter `name`.
    """
    if name is not None:
        _check_known(peft_model, name)
    with _unchanged(peft_model):
        yield AdapterView(peft_model, name)


def _switch(layer: Any, names: list[str], *, disabled: bool) -> None:
    """Let a layer compute with these adapters; gradient flags are left to the caller."""
    if isinstance(layer, ModulesToSaveWrapper):  # which knows no adapter without a copy of its own
        names = [name for name in names if name in layer.modules_to_save]
    layer.set_adapter(names)
    if layer.disable_adapters != disabled:
        layer.enable_adapters(not disabled)


def adapters_differ(peft_model: PeftModel, a: str, b: str) -> bool:
    """Whether two adapters hold different weights; if not, their log-ratio is zero everywhere."""
    for name in (a, b):
        _check_known(peft_model, name)
    weights_a, weights_b = _state(peft_model, a), _state(peft_model, b)
    return weights_a.keys() != weights_b.keys() or any(
        not torch.equal(weights_a[key], weights_b[key]) for key in weights_a
    )


@contextlib.contextmanager
def _unchanged(peft_model: PeftModel) -> Iterator[Any]:
    """Restore active adapter, disabled state, gradient flags and modes at the end; yields a restorer of the flags."""
    modules = [(module, module.training) for module in peft_model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in peft_model.parameters()]
    active, active_in_layers = peft_model.active_adapter, list(peft_model.base_model.active_adapters)
    disabled = any(layer.disable_adapters for layer in _tuner_layers(peft_model))

    def restore_flags() -> None:
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)

    try:
        yield restore_flags
    finally:
        peft_model.base_model.enable_adapter_layers()
        peft_model.set_adapter(active)
        if active_in_layers != [active]:
            peft_model.base_model.set_adapter(active_in_layers)
        if disabled:
            peft_model.base_model.disable_adapter_layers()
        restore_flags()
        for module, training in modules:
            module.training = training


def _tuner_layers(peft_model: PeftModel) -> Iterator[Any]:
    """What computes with an adapter or without one: its layers, and the modules that it keeps a copy of."""
    return (each for each in peft_model.modules() if isinstance(each, (BaseTunerLayer, ModulesToSaveWrapper)))


def _state(peft_model: PeftModel, name: str) -> dict[str, torch.Tensor]:
    """Weights of one adapter, without its name in the keys; embeddings only where the adapter trains them."""
    state: dict[str, torch.Tensor] = get_peft_model_state_dict(
        peft_model, adapter_name=name, save_embedding_layers=False
    )
    return state


def _named(peft_model: PeftModel, name: str) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that belong to one adapter alone."""
    for key, parameter in peft_model.named_parameters():
        if name in key.split("."):
            yield key, parameter


def _freeze(peft_model: PeftModel, name: str) -> None:
    for _, parameter in _named(peft_model, name):
        parameter.requires_grad_(False)


def _cast_like(peft_model: PeftModel, source: str, name: str) -> None:
    """Give the parameters of `name` the dtypes of those of `source`."""
    parts = {tuple(key.split(".")): parameter.dtype for key, parameter in _named(peft_model, source)}
    for key, parameter in _named(peft_model, name):
        twin = tuple(source if part == name else part for part in key.split("."))
        parameter.data = parameter.data.to(parts[twin])


def _frozen(config: PeftConfig) -> PeftConfig:
    """The same adapter without dropout, for inference."""
    config = copy.deepcopy(config)
    config.inference_mode = True
    for attribute in ("lora_dropout", "module_dropout", "rank_dropout"):
        if isinstance(getattr(config, attribute, None), float):
            setattr(config, attribute, 0.0)
    tied = getattr(config, "target_modules_to_tie", None)
    if getattr(config, "ensure_weight_tying", False) and tied:  # PEFT leaves the tied modules of a second adapter out
        config.ensure_weight_tying = False
        config.target_modules = {*config.target_modules, *tied}
    return config


def _check_known(peft_model: PeftModel, name: str) -> None:
    if name not in peft_model.peft_config:
        raise UsageError(f"no adapter {name!r}; there are {', '.join(map(repr, peft_model.peft_config))}")
    if peft_model.peft_config[name].is_prompt_learning:
        raise ModelError(f"adapter {name!r} consists of virtual prompt tokens, which cannot share a base: use LoRA")


def _check_apart(config: PeftConfig, name: str) -> None:
    if changes_base(config):
        raise ModelError(
            f"adapter {name!r} changes weights of its base (it trains biases, or begins with a part of the weights as "
            "PiSSA does), so no other model can stand on that base: load it on a base of its own"
        )


def _check_name(peft_model: PeftModel, name: str) -> None:
    if name in peft_model.peft_config:
        raise UsageError(f"there is already an adapter {name!r}: delete it or choose another name")
