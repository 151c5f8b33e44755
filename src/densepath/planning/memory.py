"""Bytes of each part of training, sampling and scoring: arithmetic on sizes, and nothing else.

tests/planning compares each formula with tensors that are really there, for small models of five families: what is
counted layer by layer is within 10 % of it, the rest within 2 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from densepath.core.heads import default_chunk_tokens
from densepath.core.logprobs import DEFAULT_CHUNK_TOKENS
from densepath.planning.architecture import Architecture

FLOAT32 = 4
GIB = 2**30


class Sharding(str, Enum):
    """How several processes split the model that is trained."""

    NONE = "none"
    DDP = "ddp"
    ZERO1 = "zero1"
    ZERO2 = "zero2"
    ZERO3 = "zero3"
    FSDP2 = "fsdp2"

    @property
    def divides(self) -> frozenset[str]:
        """What each process holds its part of; where that is the policy, a layer is gathered when it is needed."""
        parts = {"zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}.get(self.value, 0)
        return frozenset(("optimizer", "gradients", "policy")[:parts])

    @property
    def is_deepspeed(self) -> bool:
        """DeepSpeed casts the weights itself and keeps a float32 copy in its optimiser."""
        return self.value.startswith("zero")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        rank: of its matrices.
        targets: names of the linear maps that get one; None: all of a decoder layer.
    """

    rank: int
    targets: tuple[str, ...] | None = None

    def parameters(self, architecture: Architecture) -> int:
        """`layers sum_m r (inputs_m + outputs_m)`.

        Source: Hu et al. 2021, LoRA, section 4.1; `all-linear` of PEFT leaves the head out.
        """
        chosen = (each for each in architecture.linears if self.targets is None or each.name in self.targets)
        return architecture.layers * sum(self.rank * (each.inputs + each.outputs) for each in chosen)


def weight_bytes(architecture: Architecture, width: int, *, four_bit: bool = False) -> float:
    """A model's weights: `parameters x width`; with 4 bits the layers' linear maps take 4.127 bits a parameter.

    Source: Dettmers et al. 2023, QLoRA, section 3: NF4 with double quantisation costs 0.127 bits a parameter for its
    constants. bitsandbytes quantises `nn.Linear` but for the head; embeddings and norms keep their type.
    """
    linears = architecture.layers * architecture.layer_linears if four_bit else 0
    return linears * 4.127 / 8 + (architecture.parameters - linears) * width


STATES = {"adafactor": 0.0, "sgd": 0.0, "adagrad": 1.0, "rmsprop": 1.0, "lion_32bit": 1.0}
"""Numbers that an optimiser keeps for each parameter, in the parameter's type; AdamW and all others: 2."""


def optimizer_bytes(trained: int, optimizer: str, width: int, sharding: Sharding) -> float:
    """State of the optimiser before sharding: AdamW keeps two moments for each trained parameter.

    `2 x trained x width`; 8-bit optimisers 2 bytes; DeepSpeed keeps float32 weights and both moments: 12.

    Source: Rajbhandari et al. 2020, ZeRO, section 3.1; torch's AdamW keeps its moments in the parameter's type.
    """
    if sharding.is_deepspeed:
        return 12.0 * trained
    if "8bit" in optimizer:
        return 2.0 * trained
    return next((count for name, count in STATES.items() if optimizer.startswith(name)), 2.0) * trained * width


def layer_bytes(
    architecture: Architecture,
    weights: int,
    compute: int,
    tokens: int,
    width: int | None,
    *,
    adapter: Adapter | None = None,
) -> float:
    """What autograd keeps of one decoder layer until the backward pass reaches it.

    A token, with hidden width d, query width q, key width k, MLP width f, rows of w tokens, c bytes of a computed
    number and b bytes of a weight, for n norms over the residual stream:

        norms        n d (4 + b)          input in float32, and normalised for the gain, which LoRA does not train
        query norm   (q + k) (4 + c)      likewise
        linear maps  2 d c                read by attention and by the MLP; under autocast each map casts its own copy
        attention    (4 q + w) c          query, key and value repeated to all heads, output; the mask as a bias
        no mask      (2 q + 2 k) c        instead, where each row is one sequence: nothing is repeated
        MLP          4 f c                gate, its activation, up, their product

    With autocast and LoRA a layer also keeps the cast of its frozen weights.

    Args:
        architecture: of the model.
        weights: bytes of a stored parameter, hence of a number of the residual stream.
        compute: bytes of what a matrix product reads: 2 under autocast or with half-precision weights.
        tokens: of the batch, padding included.
        width: tokens of one row; None where each row is one sequence and needs no mask.
        adapter: what is trained; None: all weights.

    Source: derived from transformers' modelling code with scaled-dot-product attention, and counted in
    tests/planning/test_memory.py.
    """
    a, c, full, autocast = architecture, compute, adapter is None, compute != weights
    norms = a.norms * a.hidden * (FLOAT32 + full * weights)
    norms += a.query_norm * (a.query + a.key) * (FLOAT32 + full * c)
    copies = len(a.linears) - 2 if autocast else 2
    attention = 2 * (a.query + a.key) if width is None else 4 * a.query + width
    casts = 0 if full or not autocast else a.layer_linears * c
    return float(tokens * (norms + (copies * a.hidden + attention + 4 * a.intermediate) * c) + casts)


def cache_bytes(architecture: Architecture, width: int, rows: int, length: int) -> float:
    """Key-value cache: `2 k width` for each layer, row and token; a sliding layer keeps its window alone.

    Under autocast too the width is that of the residual stream: the rotary embedding promotes the keys.

    Source: the definition; see Pope et al. 2022, Efficiently scaling transformer inference, section 3.3.
    """
    kept = sum(length if window is None else min(length, window) for window in architecture.windows)
    return float(2 * architecture.key * width * rows * kept)


def sampling_logit_bytes(architecture: Architecture, rows: int, models: int = 1) -> float:
    """Float32 numbers of the vocabulary's width while one token of each row is drawn: `(3 + 2 models) rows`.

    Logits and log-probabilities of each model, then probabilities and their float64 running sum.

    Source: derived from `densepath.models.sampling`, counted in tests/planning.
    """
    return float((3 + 2 * models) * rows * architecture.vocabulary * FLOAT32)


def forward_bytes(architecture: Architecture, weights: int, compute: int, tokens: int, width: int | None) -> float:
    """One layer of a forward pass without gradients: `tokens (3 d b + max(3 f, 5 q + w) c)`.

    Source: derived; the MLP holds gate, up and their product, attention query, key, value, output and the mask.
    """
    inner = max(3 * architecture.intermediate, 5 * architecture.query + (width or 0))
    return float(tokens * (3 * architecture.hidden * weights + inner * compute))


def chunk_logit_bytes(architecture: Architecture, tokens: int) -> float:
    """Two (512, vocabulary) float32 tensors, forward or backward. Source: `densepath.core.logprobs`."""
    return float(2 * min(tokens, DEFAULT_CHUNK_TOKENS) * architecture.vocabulary * FLOAT32)


TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
"""A tile of TRL's fused head, which a GPU uses."""


def fused_logit_bytes(architecture: Architecture, compute: int, tokens: int) -> float:
    """TRL's head: one tile in the compute type, the head's part under it, float32 gradients of the hidden states.

    Source: TRL's `ChunkedLogProbFunction`.
    """
    columns = min(TILE_VOCABULARY, architecture.vocabulary)
    tile = (min(tokens, TILE_TOKENS) + architecture.hidden) * columns * compute
    return float(tile + 2 * tokens * architecture.hidden * FLOAT32)


def distribution_bytes(architecture: Architecture, tokens: int, copies: float) -> float:
    """Chunks of whole distributions: `copies x min(tokens, ceil(2^23 / vocabulary)) x vocabulary x 4`.

    Source: `densepath.core.heads`.
    """
    chunk = min(tokens, default_chunk_tokens(architecture.vocabulary))
    return float(copies * chunk * architecture.vocabulary * FLOAT32)
