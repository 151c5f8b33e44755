"""Token-by-token decoding with a key-value cache whose rows can be repeated and dropped."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from densepath.errors import ModelError

_CACHE_ARGUMENTS = ("cache", "past_key_values")
"""What transformers calls the key-value cache in a model's forward pass, from 5.24 on and before."""


def cache_argument(model: nn.Module) -> str | None:
    """The name under which a model's forward pass takes a key-value cache; None if it takes none."""
    parameters = inspect.signature(model.forward).parameters
    return next((name for name in _CACHE_ARGUMENTS if name in parameters), None)


class Decoder:
    """One model's next-token logits, a token at a time.

    What the model can do decides how rows may be batched:

    Attributes:
        expands: its cache consists of key-value layers, so rows can be repeated and dropped. Without (state-space
            layers, a cache of the model's own) rows must be decoded one by one, which is slow and correct.
        begins: what all prompts begin with can be read once: its cache keeps all tokens, and it pads.
        pads: it takes `position_ids`, so prompts of different lengths can be padded on the left.
        device: where its embeddings lie.
        hidden: (rows, width) what the head read for the last logits, if `keep_hidden`; else None.

    Raises:
        ModelError: an adapter that cannot be sampled, or a decoder of transformers whose cache is not recognised.
    """

    def __init__(self, model: PreTrainedModel, *, keep_hidden: bool = False) -> None:
        if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
            raise ModelError(
                "an adapter with virtual prompt tokens (prefix or prompt tuning) cannot be sampled: use LoRA"
            )
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        parameters = inspect.signature(base.forward).parameters
        self.device: torch.device = model.get_input_embeddings().weight.device
        self.pads = "position_ids" in parameters
        self._model = model
        self._config = base.config.get_text_config(decoder=True)
        self._one_position = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        dynamic = base._supports_default_dynamic_cache()
        self._cache_name = cache_argument(base) if dynamic else None
        # Layers of a family's own may hold more than the keys and values that are selected.
        self.expands = self._cache_name is not None and all(
            type(layer) in (DynamicLayer, DynamicSlidingWindowLayer)
            for layer in DynamicCache(config=self._config).layers
        )
        if not self.expands:
            if self._cache_name is None and dynamic and "use_cache" in parameters and _is_ordinary(base, self._config):
                raise ModelError(
                    f"{type(base).__name__}: densepath does not find its key-value cache in transformers "
                    f"{transformers.__version__}, and would sample many times slower without it; install a release "
                    "of transformers that densepath's pyproject.toml allows"
                )
            warnings.warn(
                f"{type(base).__name__}: the cache has no rows to select; rows are sampled one by one", stacklevel=2
            )
        plain = self.expands and all(type(each) is DynamicLayer for each in DynamicCache(config=self._config).layers)
        self.begins = plain and self.pads
        self._head = base.get_output_embeddings() if keep_hidden else None
        self.hidden: Tensor | None = None
        self._cache: Any = None
        self._ids: Tensor | None = None
        self._beginning: list[tuple[Tensor, Tensor]] = []

    def restrict(self, *, caches: bool) -> None:
        """Decode rows one by one without `position_ids`, as the model counts them; without a cache unless `caches`."""
        self.pads = self.expands = self.begins = False
        self._cache_name = self._cache_name if caches else None

    def read_beginning(self, ids: Sequence[int]) -> None:
        """Read what begins every prompt to come; `prefill` goes on from there.

        Args:
            ids: token ids; none: prompts are read whole again.
        """
        self._beginning = []
        if len(ids):
            one = torch.tensor([list(ids)])
            self.prefill(one, torch.ones_like(one))
            self._beginning = [(layer.keys, layer.values) for layer in self._cache.layers]

    def prefill(self, input_ids: Tensor, attention_mask: Tensor, *, room: int = 0) -> Tensor:
        """Logits after each prompt, (prompts, vocabulary), in the model's dtype; begins a new cache.

        Args:
            input_ids: (prompts, length) int64, padded on the left, without as many columns as `read_beginning` read.
            attention_mask: (prompts, beginning + length) int64, 1 = a token, 0 = padding, of the whole prompts.
            room: tokens to come of each row, for which the cache takes memory at once.
        """
        self._cache = None if self._cache_name is None else DynamicCache(config=self._config)
        self._ids = None
        if self.expands:
            size = attention_mask.shape[1] + room
            layers = [_RoomyLayer(size) if type(layer) is DynamicLayer else layer for layer in self._cache.layers]
            self._cache.layers = layers
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        kept = positions[:, : -input_ids.shape[1]].to(self.device)
        for place, layer in enumerate(self._beginning):  # behind each row's padding; rows of fewer tokens take fewer
            self._cache.update(*(each[0, :, kept].transpose(0, 1) for each in layer), place)
        return self._forward(input_ids, attention_mask, positions[:, kept.shape[1] :])

    def select(self, rows: Tensor) -> None:
        """Let row `i` be what row `rows[i]` was: repeats, drops and reorders. `rows`: (new rows,) int64."""
        if not self.expands:
            raise ModelError("this model's cache has no rows to select")
        self._cache.batch_select_indices(rows.to(self.device))

    def step(self, tokens: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Logits after one more token in each row, (rows, vocabulary), in the model's dtype.

        Args:
            tokens: (rows,) int64.
            attention_mask: (rows, length up to and including `tokens`) int64.
            positions: (rows,) int64: of `tokens`, counted from the row's first real token.
        """
        return self._forward(tokens.unsqueeze(1), attention_mask, positions.unsqueeze(1))

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        input_ids, attention_mask = input_ids.to(self.device), attention_mask.to(self.device)
        arguments: dict[str, Any] = {"use_cache": self._cache_name is not None}
        if (
            self.expands
        ):  # otherwise rows are alone, without padding: state-space layers cannot read a mask of the past
            arguments["attention_mask"] = attention_mask
        if self._cache_name is not None:
            arguments[self._cache_name] = self._cache
        else:  # read everything again
            input_ids = input_ids if self._ids is None else torch.cat([self._ids, input_ids], dim=1)
            positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
            self._ids = input_ids
        if self.pads:
            arguments["position_ids"] = positions.to(self.device)
        with self._watched_head():
            output = self._model(input_ids=input_ids, **arguments, **self._one_position)
        logits: Tensor = output.logits[:, -1]
        return logits

    @contextlib.contextmanager
    def _watched_head(self) -> Iterator[None]:
        """Remember what the head reads, if that is asked for."""
        if self._head is None:
            yield
            return

        self.hidden = None  # a compiled model runs no hooks that came after it

        def remember(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            self.hidden = given[0][:, -1]

        handle = self._head.register_forward_pre_hook(remember)
        try:
            yield
        finally:
            handle.remove()


class _RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values in memory with room for those to come: a token is written behind them, and nothing is copied."""

    keys: Tensor
    values: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size
        self._memory: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, the given ones behind."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        length = before + key_states.shape[-2]
        if not self._memory or length > self._memory[0].shape[-2]:
            old: list[Tensor] = [self.keys, self.values]
            self._memory = [
                each.new_empty(*each.shape[:-2], max(self._size, length), each.shape[-1])
                for each in (key_states, value_states)
            ]
            for memory, kept in zip(self._memory, old, strict=True):
                if before:
                    memory[..., :before, :] = kept
        for memory, given in zip(self._memory, (key_states, value_states), strict=True):
            memory[..., before:length, :] = given
        self.keys, self.values = (memory[..., :length, :] for memory in self._memory)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only keep the rows at `indices`, which may repeat."""
        super().batch_select_indices(indices)
        self._memory = []  # of the rows before


def _is_ordinary(model: PreTrainedModel, config: Any) -> bool:
    """Whether this is one of transformers' own decoders whose every layer caches keys and values of attention."""
    if not type(model).__module__.startswith("transformers.") or model._is_stateful:
        return False
    return all(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=config).layers)


class RowBatch:
    """Rows that are decoded together by one or two models, each distinct prompt read only once.

    Attributes:
        logits: of each decoder, (rows, vocabulary), on the first decoder's device.
        hidden: (rows, width) what the first decoder's head read for them, if it keeps that; else None.
    """

    def __init__(
        self,
        decoders: Sequence[Decoder],
        prompts: Sequence[Sequence[int]],
        *,
        steps: int,
        pad_token_id: int,
        begun: int = 0,
    ) -> None:
        """Read the prompts.

        Args:
            decoders: the models.
            prompts: one for each row, token ids; equal ones should be neighbours or not, it does not matter.
            steps: how often `step` may be called.
            pad_token_id: fills the left of shorter prompts.
            begun: tokens at the beginning of every prompt that the decoders have read.
        """
        self._decoders = decoders
        places: dict[tuple[int, ...], int] = {}
        row_places = [places.setdefault(tuple(prompt), len(places)) for prompt in prompts]
        self._length = max(map(len, places))
        ids = torch.full((len(places), self._length), pad_token_id)
        mask = torch.ones(len(places), self._length + steps, dtype=torch.long)
        for place, prompt in enumerate(places):
            ids[place, self._length - len(prompt) :] = torch.tensor(prompt)
            mask[place, : self._length - len(prompt)] = 0
        self._device = decoders[0].device
        self._mask = mask.to(self._device)
        self._positions = torch.tensor([len(prompt) for prompt in places], device=self._device)
        read = self._mask[:, : self._length]
        self.logits = self._gathered([d.prefill(ids[:, begun:], read, room=steps) for d in decoders])
        self.hidden = decoders[0].hidden
        if row_places != list(range(len(places))):
            self.select(row_places)

    def select(self, rows: Sequence[int]) -> None:
        """Let row `i` be what row `rows[i]` was."""
        index = torch.tensor(rows, device=self._device)
        for decoder in self._decoders:
            decoder.select(index)
        self._mask, self._positions = self._mask[index], self._positions[index]
        self.logits = [logits[index] for logits in self.logits]
        self.hidden = None if self.hidden is None else self.hidden[index]

    def step(self, tokens: Tensor) -> None:
        """Append one token to each row, (rows,) int64, and compute the next logits."""
        self._length += 1
        mask = self._mask[:, : self._length]
        self.logits = self._gathered([d.step(tokens, mask, self._positions) for d in self._decoders])
        self.hidden = self._decoders[0].hidden
        self._positions = self._positions + 1

    def _gathered(self, logits: list[Tensor]) -> list[Tensor]:
        return [each.to(self._device) for each in logits]


@contextlib.contextmanager
def inference(*models: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every submodule is in the mode it was in, exceptions included.

    Eval mode also switches gradient checkpointing off, which would forbid the cache. Not `torch.inference_mode`:
    tensors that a model keeps from inside it (rotary tables) could not be used in a later backward pass.
    """
    training = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, was_training in training:
            module.training = was_training
