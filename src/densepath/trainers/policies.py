"""The models of a DPR run: the policy that is trained, the frozen SFT policy, and the reference of the reward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from densepath.errors import ConfigError, ModelError
from densepath.models import locate
from densepath.models.adapters import add_frozen_copy, free_name, own_adapter
from densepath.models.compat import changes_base, check_same_tokenizer, is_sharded
from densepath.models.load import disable_dropout, freeze, load_model, load_tokenizer
from densepath.models.quantized import quantized
from densepath.models.sharded import copy_of, is_in_pieces, shard_frozen
from densepath.rewards.frozen import FrozenPolicy
from densepath.rewards.loading import view_on_base


def loading_arguments(args: Any, quantization_config: Any = None) -> dict[str, Any]:
    """Keyword arguments of `load_model` for models given by name, from TRL's `model_init_kwargs` and its relatives.

    Raises:
        ConfigError, ModelError: a quantisation that cannot be had (`models.quantized`).
    """
    kwargs: dict[str, Any] = dict(args.model_init_kwargs or {})
    old_name = kwargs.pop("torch_dtype", None)  # of transformers before 5, which it still takes
    dtype = kwargs.pop("dtype", None) or old_name or "float32"
    return {
        "dtype": dtype,
        "trust_remote_code": kwargs.pop("trust_remote_code", args.trust_remote_code),
        "model_init_kwargs": quantized(kwargs, dtype, quantization_config),
    }


def shared_or_loaded(
    policy: Any, given: Any, *, adapter_name: str, loading: Mapping[str, Any], tokenizer: Any = None
) -> FrozenPolicy:
    """A model, path or view as a frozen policy: on the policy's base in memory where it is a path to a part of it.

    Args:
        policy: the policy, as a PEFT model or a plain one.
        given: `FrozenPolicy`, model, or the name of a model, an adapter, or the policy's base.
        adapter_name: what an adapter that is loaded onto the policy's base is called there (`view_on_base`).
        loading: keyword arguments of `load_model`; a quantisation is for the policy's base alone, since scorers stay
            float32, and is left out for a model of its own.
        tokenizer: the policy's; a model given by name must have one of the same ids.

    Raises:
        ModelError: a model that cannot be loaded, whose tokenizer gives an id another meaning, or that training the
            policy would change.
    """
    is_peft = hasattr(policy, "peft_config")
    if isinstance(given, FrozenPolicy):
        if given.adapter in ("", own_adapter(policy) if is_peft else ""):
            _check_apart(policy, given.model)
        return given
    if is_peft and given is policy.get_base_model() and not any(map(changes_base, policy.peft_config.values())):
        return FrozenPolicy(policy, None)
    if isinstance(given, (str, Path)):
        source = locate.locate(given)
        if tokenizer is not None and (not Path(source).is_dir() or locate.has_tokenizer(source)):
            other = load_tokenizer(given, trust_remote_code=loading["trust_remote_code"])
            check_same_tokenizer(tokenizer, other, special_tokens=False)
        shared = view_on_base(policy, given, adapter_name)
        if shared is not None:
            return shared
        init = {k: v for k, v in loading["model_init_kwargs"].items() if k not in ("quantization_config", "revision")}
        given = load_model(given, **{**loading, "model_init_kwargs": init})
    _check_apart(policy, given)
    disable_dropout(given)
    return FrozenPolicy(freeze(given))


def _check_apart(policy: Any, given: Any) -> None:
    """Refuse a model that holds weights of the policy: freezing it would end the training, which would change it."""
    if not {id(weight) for weight in policy.parameters()}.isdisjoint(map(id, given.parameters())):
        raise ModelError(
            "a reference or SFT model is the policy itself, which training changes: give a copy, a path, or "
            "FrozenPolicy(model, adapter)"
        )


@dataclass(frozen=True)
class FrozenModels:
    """What a run scores.

    Attributes:
        sft: the SFT policy.
        refs: the references of the reward; empty where it needs none.
        held_out: a reference that is watched alone; None for none.
    """

    sft: FrozenPolicy
    refs: tuple[FrozenPolicy, ...]
    held_out: FrozenPolicy | None

    def mapped(self, function: Callable[[FrozenPolicy], FrozenPolicy]) -> FrozenModels:
        """Each of them, changed."""
        held_out = None if self.held_out is None else function(self.held_out)
        return FrozenModels(function(self.sft), tuple(map(function, self.refs)), held_out)


def frozen_models(
    policy: Any, sft: Any, ref: Any, held_out: Any, load: Callable[..., FrozenPolicy], *, is_sft_adapter: bool
) -> FrozenModels:
    """The frozen models of a run.

    Args:
        policy: the policy, as a PEFT model or a plain one.
        sft: the SFT policy as it was given, or its frozen copy; None: a part of the policy.
        ref: the reference, a list of several, or None.
        held_out: likewise, one or None.
        load: `shared_or_loaded` of this run.
        is_sft_adapter: whether the policy's adapter is the SFT adapter, of which a copy is frozen; else the policy
            without its new adapter is the SFT policy.
    """
    if sft is not None:
        frozen_sft = load(sft, adapter_name="sft")
    elif is_sft_adapter:
        name = free_name(policy, "sft")
        add_frozen_copy(policy, source=own_adapter(policy), name=name)
        frozen_sft = FrozenPolicy(policy, name)
    else:
        frozen_sft = FrozenPolicy(policy, None)
    given = [] if ref is None else list(ref) if isinstance(ref, (list, tuple)) else [ref]
    refs = tuple(load(each, adapter_name=f"ref_{index}") for index, each in enumerate(given))
    return FrozenModels(frozen_sft, refs, None if held_out is None else load(held_out, adapter_name="held_out_ref"))


def starting_models(
    model: Any, processing_class: Any, sft: Any, loading: Mapping[str, Any], peft_config: Any
) -> tuple[Any, Any, Any]:
    """The policy, its tokenizer, and the SFT policy: loaded where the model is a name, dropout off.

    Args:
        model: the policy or its name.
        processing_class: its tokenizer; None: the one beside the model.
        sft: the SFT policy where it is another; None, or the policy itself: a frozen copy of the policy, unless an
            adapter can be switched.
        loading: keyword arguments of `load_model`.
        peft_config: of the adapter that the trainer puts on the policy; None for none.

    Raises:
        ConfigError: several adapters of the policy are active at once, or it is no PEFT model and holds one.
    """
    sft = None if sft is model else sft
    if isinstance(model, (str, Path)):
        if processing_class is None:
            processing_class = load_tokenizer(model, trust_remote_code=loading["trust_remote_code"])
        model = load_model(model, for_training=True, **loading)
    switch_off_dropout(model)
    is_peft = hasattr(model, "peft_config")
    if is_peft and not isinstance(model, PeftModel):
        raise ConfigError(
            "model is a transformers model that holds an adapter itself, which cannot be switched: give the name of "
            "the adapter's folder, or load it by PeftModel.from_pretrained"
        )
    if is_peft:
        own_adapter(model)  # refused before anything is made of the model
    adapters = list(model.peft_config.values()) if is_peft else [peft_config]
    if sft is None and any(each is None or changes_base(each) for each in adapters):
        sft = freeze(copy_of(model))  # the policy as it is before training
    return model, processing_class, sft


def placed(view: FrozenPolicy, policy: Any, accelerator: Any, sharded: bool) -> FrozenPolicy:
    """A frozen policy where it can be scored: on this process's device, or spread over the processes like the policy.

    Args:
        view: the frozen policy; left alone where it is a view of the policy's own base.
        policy: the policy.
        accelerator: of the trainer.
        sharded: whether no process holds the policy's weights whole.
    """
    if view.model is policy:
        return view
    if sharded and (is_in_pieces(view.model) or not is_sharded(view.model)):
        return FrozenPolicy(shard_frozen(view.model, accelerator), view.adapter)
    if not sharded:
        view.model.to(accelerator.device)
    return view


def switch_off_dropout(model: Any) -> None:
    """Set every dropout probability to zero, and warn if one was not: REINFORCE needs the policy that sampled."""
    count = disable_dropout(model)
    if count:
        warnings.warn(
            f"dropout was on in {count} places of the policy; it is off now, in training too: the log-probabilities "
            "must be those of the policy that sampled",
            stacklevel=4,
        )
