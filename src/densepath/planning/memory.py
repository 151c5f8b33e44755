"""Bytes of each part of training, sampling and scoring: arithmetic on sizes, and nothing else.

Every formula is checked against tensors that are really there: tests/planning counts what autograd saves, what an
optimizer holds and what a cache keeps, for small models of each family.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from densepath.core.heads import default_chunk_tokens
from densepath.core.logprobs import DEFAULT_CHUNK_TOKENS
from densepath.planning.architecture import Architecture, Linear

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
    def shards_optimizer(self) -> bool:
        """Each process holds its part of the optimiser state."""
        return self not in (Sharding.NONE, Sharding.DDP)

    @property
    def shards_gradients(self) -> bool:
        """Each process keeps its part of the gradients."""
        return self in (Sharding.ZERO2, Sharding.ZERO3, Sharding.FSDP2)

    @property
    def shards_weights(self) -> bool:
        """Each process holds its part of the weights and gathers a layer when it needs it."""
        return self in (Sharding.ZERO3, Sharding.FSDP2)

    @property
    def is_deepspeed(self) -> bool:
        """DeepSpeed casts the weights itself and keeps a float32 copy in its optimiser."""
        return self in (Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3)


@dataclass(frozen=True)
class Precision:
    """Bytes of an element.

    Attributes:
        weights: of a stored parameter, hence of the residual stream.
        compute: of what a matrix product reads: 2 under autocast or with half-precision weights.
    """

    weights: int = FLOAT32
    compute: int = FLOAT32

    @property
    def autocasts(self) -> bool:
        """Whether weights are cast at each use."""
        return self.compute != self.weights


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Attributes:
        rank: of its matrices.
        targets: names of the linear maps that get one; None: all of a decoder layer.
    """

    rank: int
    targets: tuple[str, ...] | None = None

    def of(self, architecture: Architecture) -> list[Linear]:
        """The linear maps of one layer that get a pair of matrices."""
        return [each for each in architecture.linears if self.targets is None or each.name in self.targets]


# -- weights -----------------------------------------------------------------------------------------------------


def adapter_parameters(architecture: Architecture, adapter: Adapter) -> int:
    """Parameters of a LoRA adapter: `layers sum_m r (inputs_m + outputs_m)`.

    Source: Hu et al. 2021, LoRA, section 4.1; `all-linear` of PEFT leaves the head out.
    """
    return architecture.layers * sum(adapter.rank * (each.inputs + each.outputs) for each in adapter.of(architecture))


def weight_bytes(architecture: Architecture, precision: Precision, *, four_bit: bool = False) -> float:
    """A model's weights: `parameters x bytes`; with 4 bits the layers' linear maps take 4.127 bits a parameter.

    Source: Dettmers et al. 2023, QLoRA, section 3: NF4 with double quantisation costs 0.127 bits a parameter for its
    constants. bitsandbytes quantises `nn.Linear` but for the head; embeddings and norms keep their type.
    """
    if not four_bit:
        return float(architecture.parameters * precision.weights)
    linears = architecture.layers * architecture.layer_linears
    return linears * 4.127 / 8 + (architecture.parameters - linears) * precision.weights


# -- training ----------------------------------------------------------------------------------------------------

STATES = {"adafactor": 0.0, "sgd": 0.0, "adagrad": 1.0, "rmsprop": 1.0, "lion_32bit": 1.0}
"""Numbers that an optimiser keeps for each parameter, in the parameter's type; AdamW and all others: 2."""


def optimizer_bytes(trained: int, optimizer: str, precision: Precision, sharding: Sharding) -> float:
    """State of the optimiser before sharding: AdamW keeps two moments for each trained parameter.

    `2 x trained x bytes of a weight`; 8-bit optimisers 2 bytes; DeepSpeed keeps float32 weights and both moments: 12.

    Source: Rajbhandari et al. 2020, ZeRO, section 3.1; torch's AdamW keeps its moments in the parameter's type.
    """
    if sharding.is_deepspeed:
        return 12.0 * trained
    if "8bit" in optimizer:
        return 2.0 * trained
    states = next((count for name, count in STATES.items() if optimizer.startswith(name)), 2.0)
    return states * trained * precision.weights


def layer_bytes_per_token(
    architecture: Architecture, precision: Precision, width: int | None, adapter: Adapter | None = None
) -> float:
    """What autograd keeps of one token in one decoder layer until the backward pass reaches it.

    With hidden width d, query width q, key width k, MLP width f, attention row of w tokens, c bytes of a computed
    number and b bytes of a weight, for n norms over the residual stream:

        norms        n d 4                input, in float32
        + trained    n d b                normalised, for the gradient of the gain; LoRA trains no gain
        query norm   (q + k) 4, trained + (q + k) c
        linear maps  2 d c                read by attention and by the MLP; under autocast each map casts its own copy
        attention    4 q c + 4 heads      query, key and value repeated to all heads, output; log-sum-exp
        mask         w c                  the bool mask as a bias
        no mask      (2 q + 2 k) c        instead of both, where each row is one sequence: nothing is repeated
        MLP          4 f c                gate, its activation, up, their product
        LoRA         r c a map            the adapter's inner state; under autocast q c more for the attention's output

    Args:
        architecture: of the model.
        precision: bytes of an element.
        width: tokens of one row; None where each row is one sequence and needs no mask.
        adapter: what is trained; None: all weights.

    Source: derived from transformers' modelling code with scaled-dot-product attention, and counted in
    tests/planning/test_memory.py.
    """
    a, c = architecture, precision.compute
    full = adapter is None
    kept = FLOAT32 if a.float_norms else precision.weights
    norms: float = a.norms * a.hidden * (FLOAT32 + (kept if full else 0)) + FLOAT32 * a.norms
    if a.query_norm:
        norms += (a.query + a.key) * (FLOAT32 + ((FLOAT32 if a.float_norms else c) if full else 0))
        norms += FLOAT32 * (a.query + a.key) * a.heads / a.query
    copies = len(a.linears) - 2 if precision.autocasts else 2
    attention = 2 * (a.query + a.key) * c if width is None else (4 * a.query + width) * c
    attention += FLOAT32 * a.heads
    inner = 0.0
    if adapter is not None:
        inner = adapter.rank * c * len(adapter.of(a)) + (a.query * c if precision.autocasts else 0)
    return norms + copies * a.hidden * c + attention + 4 * a.intermediate * c + inner


def layer_bytes(
    architecture: Architecture,
    precision: Precision,
    tokens: int,
    width: int | None,
    *,
    adapter: Adapter | None = None,
    four_bit: bool = False,
) -> float:
    """Bytes that one decoder layer keeps for its backward pass: `tokens x layer_bytes_per_token`, and its casts.

    Without gradient checkpointing all layers keep theirs until the backward pass begins. The final norm and the rotary
    tables are small and left out; with autocast and LoRA a layer also keeps the cast of its frozen weights, unless
    they are quantised.

    Args:
        architecture: of the model.
        precision: bytes of an element.
        tokens: of the batch, padding included.
        width: tokens of one row, or None; see `layer_bytes_per_token`.
        adapter: what is trained; None: all weights.
        four_bit: the frozen weights are quantised.

    Source: derived, as `layer_bytes_per_token`.
    """
    layer = tokens * layer_bytes_per_token(architecture, precision, width, adapter)
    if adapter is not None and precision.autocasts and not four_bit:
        layer += architecture.layer_linears * precision.compute
    return layer


def checkpoint_bytes(architecture: Architecture, precision: Precision, tokens: int) -> float:
    """The inputs of all layers, which gradient checkpointing keeps: `layers x tokens x d x bytes of a weight`.

    Source: Chen et al. 2016, Training deep nets with sublinear memory cost.
    """
    return float(architecture.layers * tokens * architecture.hidden * precision.weights)


def passing_bytes(architecture: Architecture, precision: Precision, tokens: int) -> float:
    """Gradients that exist beside what a layer keeps while its MLP is passed backwards: `tokens (2 f c + d b)`.

    Source: derived; the product's gradient becomes those of its two factors, when what the product was is gone.
    """
    return float(
        tokens * (2 * architecture.intermediate * precision.compute + architecture.hidden * precision.weights)
    )


def cast_bytes(architecture: Architecture, precision: Precision, adapter: Adapter | None) -> float:
    """Half-precision copies of trained weights that autocast keeps until the forward pass ends.

    Source: torch's autocast cache holds the cast of every leaf that requires a gradient.
    """
    if not precision.autocasts or adapter is not None:
        return 0.0
    return float(architecture.layers * architecture.layer_linears * precision.compute)


HEAP_LIMIT = 32 * 2**20
"""glibc takes tensors of at least this size from the kernel one by one; smaller ones come from its heap."""
HEAP_WASTE = {(False, False): 0.5, (False, True): 1.4, (True, False): 1.9, (True, True): 2.5}
"""(LoRA, gradient checkpointing) -> bytes of heap lost for each byte that a layer's linear maps write: measured with
glibc 2.36 (docs/log.md)."""


def heap_bytes(
    architecture: Architecture, tokens: int, limit: float, *, checkpointing: bool, adapter: Adapter | None = None
) -> float:
    """What the heap of a CPU process holds and cannot hand out again in a training pass, float32.

    torch asks for aligned memory, and glibc serves such a request from a hole only where the hole is larger than the
    tensor. So a hole that a temporary leaves between tensors that stay is lost: `waste x sum_m tokens outputs_m 4`
    over the maps whose output is smaller than the limit. LoRA makes three temporaries a map. With gradient
    checkpointing a layer's temporaries leave their holes around the one input that stays.

    Args:
        architecture: of the model.
        tokens: of the batch, padding included.
        limit: bytes from which a tensor is not taken from the heap: `MALLOC_MMAP_THRESHOLD_`, or `HEAP_LIMIT`.
        checkpointing: gradient checkpointing.
        adapter: what is trained; None: all weights.
    """
    sizes = [tokens * each.outputs * FLOAT32 for each in architecture.linears]
    waste = HEAP_WASTE[adapter is not None, checkpointing]
    return waste * architecture.layers * sum(size for size in sizes if size < limit)


# -- sampling ----------------------------------------------------------------------------------------------------


def cache_bytes(architecture: Architecture, precision: Precision, rows: int, length: int) -> float:
    """Key-value cache: `2 k b` for each layer, row and token; a sliding layer keeps its window alone.

    b is the width of the residual stream's type: that of the keys, which the rotary embedding promotes, under autocast
    too; the values are stored in it as well. transformers from 5.24 on stores values in their own type: under autocast
    this then counts up to a quarter too much.

    Source: the definition; see Pope et al. 2022, Efficiently scaling transformer inference, section 3.3.
    """
    kept = sum(length if window is None else min(length, window) for window in architecture.windows)
    return float(2 * architecture.key * precision.weights * rows * kept)


SAMPLING_COPIES = 5
"""Rows of logits while a token is drawn: logits, log-probabilities, probabilities, and their float64 running sum."""
CONTRAST_COPIES = 7
"""The same for two models, whose logits and log-probabilities are combined."""


def sampling_logit_bytes(architecture: Architecture, rows: int, models: int) -> float:
    """Vocabulary-wide numbers while one token of each row is drawn: `copies x rows x vocabulary x 4`.

    Source: derived from `densepath.models.sampling`, counted in tests/planning.
    """
    copies = SAMPLING_COPIES if models == 1 else CONTRAST_COPIES
    return float(copies * rows * architecture.vocabulary * FLOAT32)


def forward_bytes(architecture: Architecture, precision: Precision, tokens: int, width: int | None) -> float:
    """One layer of a forward pass without gradients: `tokens (3 d b + max(3 f, 5 q + w) c)`.

    Source: derived; the MLP holds gate, up and their product, attention query, key, value, output and the mask.
    """
    a = architecture
    inner = max(3 * a.intermediate, 5 * a.query + (width or 0))
    return float(tokens * (3 * a.hidden * precision.weights + inner * precision.compute))


# -- head --------------------------------------------------------------------------------------------------------

HEAD_COPIES = 2
"""(chunk, vocabulary) tensors of `chunked_token_logprobs` at once, forward and backward."""
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
"""A tile of TRL's fused head, which a GPU uses."""


def scored_logit_bytes(architecture: Architecture, tokens: int) -> float:
    """Logits of one chunk of a scoring pass, float32, twice. Source: `densepath.core.logprobs`, counted there."""
    return float(HEAD_COPIES * tokens * architecture.vocabulary * FLOAT32)


def head_bytes(architecture: Architecture, precision: Precision, tokens: int, *, cuda: bool) -> float:
    """Logits of the training pass, which exist a chunk or tile at a time.

    On a CPU two (512, vocabulary) float32 tensors; on a GPU TRL's head: one (4096, 32768) tile in the compute type,
    the head's part under it, and float32 gradients of the hidden states.

    Source: `densepath.core.logprobs` and TRL's `ChunkedLogProbFunction`.
    """
    if not cuda:
        return scored_logit_bytes(architecture, min(tokens, DEFAULT_CHUNK_TOKENS))
    columns = min(TILE_VOCABULARY, architecture.vocabulary)
    tile = (min(tokens, TILE_TOKENS) + architecture.hidden) * columns * precision.compute
    return float(tile + 2 * tokens * architecture.hidden * FLOAT32)


def loss_copies(*, all_action: bool, state_kl: bool) -> float:
    """Chunks of whole distributions that a loss holds at once, forward and backward.

    Over all actions eight: log-probabilities of the policy, their exponentials, the action rewards, and the products
    and gradients of these. A KL of its own adds the SFT model's, its products and a mask of one byte a number.

    Source: `densepath.trainers.whole_vocabulary`, counted in tests/planning.
    """
    return (11.25 if all_action else 8.25) if state_kl else 8.0


def visit_copies(*, all_action: bool) -> int:
    """The same of the scoring before it. Source: `WholeVocabulary.visit`, counted in tests/planning."""
    return 7 if all_action else 5


def distribution_bytes(architecture: Architecture, tokens: int, copies: float) -> float:
    """Chunks of (tokens, vocabulary) float32 log-probabilities and their products.

    `copies x min(tokens, ceil(2^23 / vocabulary)) x vocabulary x 4`. Source: `densepath.core.heads`.
    """
    chunk = min(tokens, default_chunk_tokens(architecture.vocabulary))
    return float(copies * chunk * architecture.vocabulary * FLOAT32)


DEEPSPEED_BUCKET = 500_000_000
"""Elements of a reduce or gather bucket (`reduce_bucket_size`, DeepSpeed's default)."""
DEEPSPEED_LIVE = 1_000_000_000
"""Gathered parameters that ZeRO-3 keeps at most (`stage3_max_live_parameters`, DeepSpeed's default)."""
