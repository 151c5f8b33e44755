"""Whether models and tokenizers fit each other: token ids, vocabulary, context length, end tokens, weights."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from densepath.errors import MissingFileError, ModelError
from densepath.models import locate


def context_length(model: PreTrainedModel) -> int:
    """How many positions the model has, prompt and completion together, in tokens.

    Read from the configuration (its text part, where it has several): a tokenizer's `model_max_length` may be
    1e30. `sys.maxsize` for a model whose positions are not bounded (ALiBi, state-space models).
    """
    config = model.config.get_text_config(decoder=True)
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return sys.maxsize


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The token ids that end a completion: those of the generation config, and the tokenizer's before them.

    Source: the rule of TRL's GRPOTrainer, so that both end completions at the same tokens.

    Raises:
        ModelError: neither the model nor the tokenizer names an end-of-sequence token.
    """
    generation_config = getattr(model, "generation_config", None)
    configured = getattr(generation_config, "eos_token_id", None)
    ids = [] if configured is None else [configured] if isinstance(configured, int) else list(configured)
    own = tokenizer.eos_token_id
    if own is not None and own not in ids:
        ids = [own, *ids]
    if not ids:
        raise ModelError("neither the generation config nor the tokenizer has an eos_token_id: completions never end")
    return tuple(ids)


def check_same_tokenizer(
    a: PreTrainedTokenizerBase, b: PreTrainedTokenizerBase, *, special_tokens: bool = True
) -> None:
    """Refuse two tokenizers that do not give every id the same meaning.

    The models score one another's sampled ids, so ids must agree; how text is split into them need not. Pad is not
    compared: nothing is ever read from a padded position.

    Args:
        a: one tokenizer.
        b: the other.
        special_tokens: also require the same EOS and BOS, and the same added tokens. A reference only scores ids: its
            own special tokens are never read, and a token that was added to one of the two (a pad token) matters only
            where a text holds it, which scoring refuses if the reference has no embedding for it.

    Raises:
        ModelError: the first difference: vocabulary size, the id of a token, or a special token.
    """
    names = f"{a.name_or_path or 'the first'} and {b.name_or_path or 'the second'}"
    vocab_a, vocab_b = a.get_vocab(), b.get_vocab()
    if not special_tokens:
        added_a, added_b = ({str(token) for token in each.added_tokens_decoder.values()} for each in (a, b))
        vocab_a, vocab_b = (
            {token: index for token, index in vocab_a.items() if token in vocab_b or token not in added_a},
            {token: index for token, index in vocab_b.items() if token in vocab_a or token not in added_b},
        )
    for token, index in sorted(vocab_a.items(), key=lambda item: item[1]):
        other = vocab_b.get(token)
        if other != index:
            there = "does not exist" if other is None else f"is {other}"
            sizes = "" if len(vocab_a) == len(vocab_b) else f" (sizes {len(vocab_a)} and {len(vocab_b)})"
            raise ModelError(f"the tokenizers of {names} differ: token {token!r} is {index} and {there}{sizes}")
    if len(vocab_a) != len(vocab_b):
        extra = min((index, token) for token, index in vocab_b.items() if token not in vocab_a)[1]
        raise ModelError(
            f"the tokenizers of {names} differ: vocabulary sizes {len(vocab_a)} and {len(vocab_b)}; "
            f"{extra!r} is only in the second"
        )
    if special_tokens:
        for name in ("eos_token_id", "bos_token_id"):
            mine, yours = getattr(a, name), getattr(b, name)
            if mine != yours:
                raise ModelError(f"the tokenizers of {names} differ: {name} is {mine} and {yours}")


def is_sharded(model: nn.Module) -> bool:
    """Whether a process holds but a part of the model's weights (FSDP2, DeepSpeed ZeRO-3)."""
    return any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())


def computed_on(model: Any) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a model's embeddings: kernels, and how they round, are those of another model elsewhere."""
    weight = model.get_input_embeddings().weight
    return weight.device, weight.dtype


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool = False) -> Iterator[None]:
    """A model in eval or train mode for the block; each of its modules then has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def embedding_rows(model: PreTrainedModel) -> int:
    """Rows of the input embeddings: the ids below can be read. Whole where they are sharded."""
    weight = model.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def predicted_rows(model: PreTrainedModel) -> int:
    """Token ids that a model both reads and predicts: some heads have fewer rows than the embeddings."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    rows = getattr(head, "out_features", None)
    return min(embedding_rows(model), rows) if isinstance(rows, int) and rows > 0 else embedding_rows(model)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuse a tokenizer with ids that the model has no embedding for. Spare embedding rows are fine.

    Raises:
        ModelError: the largest id lies outside of the embedding.
    """
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    rows = embedding_rows(model)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer gives {token!r} the id {largest}, and the model has {rows} embeddings: "
            "they do not belong together (or resize_token_embeddings was forgotten)"
        )


def check_vocabularies(models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Refuse models that do not all score what the tokenizer gives; spare rows (padding to a multiple) do not matter.

    Tokens that were added to the tokenizer, other than EOS, may be missing from a model: scoring refuses the text that
    holds one. A softmax runs over all rows of a model, spare ones included, as in its own forward pass.

    Args:
        models: by what they are called in a message, the one that samples first.
        tokenizer: theirs; None where it is not known, and then their vocabularies must be equally large.

    Raises:
        ModelError: the first model whose vocabulary is too small, or another.
    """
    rows = {name: predicted_rows(model) for name, model in models.items()}
    if len(set(rows.values())) == 1:
        return
    (first, mine), *others = rows.items()
    if tokenizer is None:
        name, other = next((name, count) for name, count in others if count != mine)
        raise ModelError(
            f"the {first} has a vocabulary of {mine} tokens, the {name} of {other}: both must share one tokenizer; "
            "give it (tokenizer=), or choose a checkpoint of the same model family"
        )
    added = tokenizer.added_tokens_decoder
    needed = max((index for index in tokenizer.get_vocab().values() if index not in added), default=-1)
    needed = max(needed, tokenizer.eos_token_id if tokenizer.eos_token_id is not None else -1)
    for name, count in rows.items():
        if count <= needed:
            raise ModelError(
                f"the {first} has a vocabulary of {mine} tokens, the {name} of {count}, which lacks token id {needed} "
                f"({tokenizer.convert_ids_to_tokens(needed)!r}): both must share one tokenizer; choose a checkpoint "
                "of the same model family"
            )


def warn_of_spare_ids(completion_ids: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> None:
    """Say (`UserWarning`) that a model sampled an id which is no token: a spare row of its embeddings."""
    largest = max((max(ids, default=-1) for ids in completion_ids), default=-1)
    if largest >= len(tokenizer) and largest > max(tokenizer.get_vocab().values()):
        warnings.warn(
            f"the model sampled id {largest}, no token of its tokenizer ({len(tokenizer)} tokens) but a spare row of "
            "its embeddings: it decodes to nothing; model.resize_token_embeddings(len(tokenizer)) removes such rows",
            stacklevel=2,
        )


def replaced_weights(source: str) -> tuple[str, ...]:
    """Weights of the base that a saved adapter brings its own values for: resized embeddings, trained biases.

    An adapter that has some cannot share a base in memory with others: loading it changes the base.

    Args:
        source: adapter folder, or cached hub id.
    """
    from peft import PeftConfig
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    prefix = PEFT_TYPE_TO_PREFIX_MAPPING.get(PeftConfig.from_pretrained(source).peft_type, "lora_")
    return tuple(
        name.removeprefix("base_model.model.")
        for name in _tensor_files(source)
        if name.endswith((".weight", ".bias")) and not any(part.startswith(prefix) for part in name.split("."))
    )


def changes_base(config: Any) -> bool:
    """Whether an adapter of that PEFT configuration changes its base, so that the base without it is another model.

    It trains biases of the base, or takes a part of the weights for its own beginning (PiSSA, OLoRA, CorDA, LoftQ).
    """
    beginning = getattr(config, "init_lora_weights", True)
    takes = isinstance(beginning, str) and beginning not in ("gaussian", "eva", "orthogonal")
    return takes or getattr(config, "bias", "none") != "none"


def shares_base(source: str) -> bool:
    """Whether a model is an adapter that leaves the weights of its base as they are."""
    from peft import PeftConfig

    apart = locate.is_adapter(source) and not replaced_weights(source)
    return apart and not changes_base(PeftConfig.from_pretrained(source))


def embeddings_of_adapter(source: str, model: PreTrainedModel) -> int:
    """Rows that the embeddings of a base must have for a saved adapter: those of its own, if it brings some.

    Raises:
        ModelError: it was trained after a resize, and does not bring the new rows of both embeddings and head.
    """
    read, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is None or head.weight is read.weight
    files = _tensor_files(source)
    found: dict[str, int | None] = {}
    for name, module in model.named_modules():
        if module is read or module is head:
            kinds = ("", "base_layer.", "token_adapter.base_layer.")
            keys = [f"base_model.model.{name}.{kind}weight" for kind in kinds]
            found[name] = next((len(_tensor(files[key], key)) for key in keys if key in files), None)
    rows = {count for count in found.values() if count is not None}
    for count in rows - {embedding_rows(model)}:
        if lacking := [name for name, own in found.items() if own != count and not tied]:
            raise ModelError(
                f"{source}: the adapter was trained after the embeddings were resized to {count} rows, and those of "
                f"{lacking[0]} are not in its files and would be random: save it again with "
                "modules_to_save=['embed_tokens', 'lm_head'], or merged with its base"
            )
        return count
    return embedding_rows(model)


def check_deterministic(model: PreTrainedModel) -> None:
    """Refuse a policy that draws random numbers in train mode: dropout that could not be switched off, for one.

    REINFORCE differentiates the log-probabilities of the policy that sampled, which has no such noise.

    Raises:
        ModelError: two passes over the same tokens in train mode differ.
    """
    embeddings = model.get_input_embeddings().weight
    if embeddings.numel() == 0 or embeddings.device.type == "meta":
        return  # sharded at load time: nothing can be computed yet
    ids = torch.arange(8, device=embeddings.device).unsqueeze(0) % embeddings.shape[0]
    with in_mode(model, training=True), torch.no_grad(), torch.random.fork_rng():
        first, second = (model(input_ids=ids).logits for _ in range(2))
    if not torch.equal(first, second):
        raise ModelError(
            "the policy draws random numbers in train mode (dropout is on): its log-probabilities would not be those "
            "of the policy that sampled; set every dropout of the model's configuration and code to 0"
        )


def weights_differ(a: str | Path, b: str | Path) -> bool:
    """Whether two saved models are different functions; if not, their log-ratio is zero everywhere.

    Args:
        a: folder, adapter folder, catalogue name or cached hub id.
        b: the other.

    Returns:
        False when they are one folder, or hold equal tensors under equal names (compared in float32). A LoRA
        adapter whose B matrices are all zero counts as its base.

    Raises:
        MissingFileError: one of them is not on this disk.
        ModelError: one of them has no safetensors weights.
    """
    source_a, source_b = _effective(locate.locate(a)), _effective(locate.locate(b))
    if source_a == source_b or (Path(source_a).is_dir() and Path(source_a).resolve() == Path(source_b).resolve()):
        return False
    if locate.is_adapter(source_a) != locate.is_adapter(source_b):
        return True
    if locate.is_adapter(source_a) and weights_differ(locate.adapter_base(source_a), locate.adapter_base(source_b)):
        return True
    files_a, files_b = _tensor_files(source_a), _tensor_files(source_b)
    return files_a.keys() != files_b.keys() or any(
        not _equal(_tensor(files_a[name], name), _tensor(files_b[name], name)) for name in files_a
    )


def _effective(source: str) -> str:
    """The base of a LoRA adapter that changes nothing; else `source` itself."""
    if not locate.is_adapter(source):
        return source
    files = _tensor_files(source)
    if not files or not all(".lora_A." in name or ".lora_B." in name for name in files):
        return source
    if any(_tensor(files[name], name).any() for name in files if ".lora_B." in name):
        return source
    return locate.adapter_base(source)


def _tensor_files(source: str) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it."""
    folder = Path(source) if Path(source).is_dir() else _snapshot(source)
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with locate.explained(source, "model"), safe_open(path, framework="pt") as tensors:
            files.update(dict.fromkeys(tensors.keys(), path))
    if not files:
        raise ModelError(f"{source}: no *.safetensors weights in it")
    return files


def _snapshot(source: str) -> Path:
    """Where the weights of a hub id lie in the cache; they are fetched where only their configuration is there."""
    from huggingface_hub import snapshot_download

    for cached in (True, False):
        try:
            folder = Path(snapshot_download(source, allow_patterns="*.safetensors", local_files_only=cached))
        except (OSError, ValueError):
            continue
        if any(folder.glob("*.safetensors")):
            return folder
    raise MissingFileError(f"no such folder, and neither in the hub's cache nor to be had from the hub: {source}")


def _tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(name)
        return tensor


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.float(), b.float())
