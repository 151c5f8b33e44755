"""What is alive at each moment of each stage: named terms in bytes, by arithmetic on sizes.

A plan is data, stages of moments of terms, that the table, the JSON and the refusal read. tests/planning compares the
formulas with tensors that are really there, for small models of five families.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from densepath.core.heads import default_chunk_tokens
from densepath.core.logprobs import DEFAULT_CHUNK_TOKENS
from densepath.models.sampling import DEFAULT_TOKEN_BUDGET as SAMPLING_TOKENS
from densepath.planning.architecture import Architecture

FLOAT32 = 4
GIB = 2**30
STATE = ("process", "policy", "frozen models", "gradients", "optimizer")
TERMS = (*STATE, "activations", "hidden states", "logits", "KV cache", "buffers", "vLLM")
"""What is counted; docs/plan.md says how."""
PARTS = ("optimizer", "gradients", "policy")
"""Terms that can be divided over processes, or kept off the GPU, in the order in which ZeRO's stages divide them."""
DIVIDED = {"none": 0, "ddp": 0, "zero1": 1, "zero2": 2, "zero3": 3, "fsdp2": 3}
"""Sharding -> how many of `PARTS` each process holds its part of."""
DEEPSPEED_BUCKETS, DEEPSPEED_LIVE = 1_000_000_000, 1_000_000_000
"""Elements of DeepSpeed's two buckets, and of the gathered parameters that ZeRO-3 keeps at most: its defaults."""
STATES = {"adafactor": 0, "sgd": 0, "adagrad": 1, "rmsprop": 1, "lion_32bit": 1}
"""Numbers that an optimizer keeps for each parameter, in the parameter's type; AdamW and all others: 2."""
LOSS_COPIES, CPU_LOSS_COPIES = 14.3, 4.4
"""Chunks of whole distributions that a loss over all actions with a KL of its own holds at once, forward and backward,
on a GPU and on a CPU, which works on tiles of a chunk; a loss with one of the two holds fewer. Counted in
tests/planning."""

Terms = dict[str, float]
"""Name of a term -> bytes."""
Moments = dict[str, Terms]
"""What is alive at each moment of a stage."""


@dataclass(frozen=True)
class Machine:
    """One process's device.

    Attributes:
        cuda: a GPU; else the CPU and the memory of the process.
        memory: bytes of it; None: not known, nothing is refused.
        process: bytes before any model.
        processes: how many there are.
        sharding: how they split the trained model, a key of `DIVIDED`.
        offloaded: those of `PARTS` that are kept off the GPU.
    """

    cuda: bool
    memory: float | None
    process: float
    processes: int = 1
    sharding: str = "none"
    offloaded: tuple[str, ...] = ()

    def part(self, term: str) -> float:
        """The share of one of `PARTS` that one process holds on its device."""
        if term in self.offloaded:
            return 0.0
        return 1 / self.processes if term in PARTS[: DIVIDED[self.sharding]] else 1.0


@dataclass(frozen=True)
class Training:
    """One training stage, a process.

    Attributes:
        model: its sizes.
        machine: where it is trained.
        weights: bytes of a stored parameter.
        autocast: matrix products are computed in half precision whatever the weights are in.
        adapter: parameters of a LoRA adapter, which PEFT keeps in float32; 0: all weights are trained.
        adapter_reads: numbers of a token that the adapter's matrices read in one layer.
        four_bit: the base is quantised.
        rows: sequences of one micro-batch.
        accumulation: micro-batches of one step.
        optimizer: transformers' name of it.
        checkpointing: gradient checkpointing.
        prompt: tokens of a prompt.
        completion: tokens of a completion.
        group: completions of one prompt that stand in the same micro-batch.
        whole_vocabulary: the loss is taken from whole distributions.
    """

    model: Architecture
    machine: Machine
    weights: int
    autocast: bool
    adapter: int
    adapter_reads: int
    four_bit: bool
    rows: int
    accumulation: int
    optimizer: str
    checkpointing: bool
    prompt: int = 1
    completion: int = 1
    group: int = 1
    whole_vocabulary: bool = False

    @property
    def compute(self) -> int:
        """Bytes of a computed number."""
        return min(self.weights, 2) if self.autocast else self.weights

    @property
    def adapter_copies(self) -> int:
        """Bytes of a token that the adapter's matrices of one layer read as copies of their own.

        PEFT casts what they read to their own float32, and autocast that to half precision; nothing is copied that is
        in the type already, and under autocast a layer in 4 bits hands on what it was given. DeepSpeed's adapters are
        in the type of its weights.
        """
        if self.autocast:
            alike = self.four_bit or self.machine.sharding.startswith("zero")
            return 0 if alike else self.adapter_reads * self.compute
        return self.adapter_reads * FLOAT32 * (self.weights < FLOAT32)

    @property
    def trained(self) -> int:
        """Parameters that the optimizer changes."""
        return self.adapter or self.model.parameters

    @property
    def padded(self) -> bool:
        """One sequence a row: a model that ZeRO-3 loads in pieces takes no packed ones."""
        return self.machine.sharding == "zero3"

    @property
    def stored(self) -> int:
        """Bytes of a weight while training: DeepSpeed casts them, and keeps a float32 copy in its optimizer."""
        return 2 if self.machine.sharding.startswith("zero") and self.compute == 2 else self.weights


@dataclass(frozen=True)
class Plan:
    """Every stage of a run on one device.

    Attributes:
        model: its sizes.
        trained: parameters that the optimizer changes.
        machine: where.
        stages: in the order of the run.
        done: remedies that the recipe has taken already, as `table.REMEDIES` words them.
        vllm: share of the GPU of a colocated vLLM, or 0.
        vllm_needs: bytes that it must hold at least: half-precision weights and the cache of one sequence.
    """

    model: Architecture
    trained: int
    machine: Machine
    stages: dict[str, Moments]
    done: frozenset[str] = frozenset()
    vllm: float = 0.0
    vllm_needs: float = 0.0

    @property
    def largest(self) -> str:
        """The stage that needs most."""
        return max(self.stages, key=self.need)

    def need(self, stage: str) -> float:
        """Bytes of a stage at its largest moment."""
        return sum(peak(self.stages[stage])[1].values())


def peak(moments: Moments) -> tuple[str, Terms]:
    """The moment that needs most."""
    return max(moments.items(), key=lambda moment: sum(moment[1].values()))


def weight_bytes(model: Architecture, width: int, *, four_bit: bool = False) -> float:
    """A model's weights: `parameters x width`; with 4 bits the layers' linear maps take 4.127 bits a parameter.

    Source: Dettmers et al. 2023, QLoRA, section 3: NF4 with double quantisation costs 0.127 bits a parameter.
    """
    linears = model.layers * model.layer_linears if four_bit else 0
    return linears * 4.127 / 8 + (model.parameters - linears) * width


def optimizer_bytes(trained: int, optimizer: str, width: int) -> float:
    """`2 x trained x width` of AdamW; 8-bit optimizers 2 bytes.

    Source: Rajbhandari et al. 2020, ZeRO, section 3.1; torch's AdamW keeps its moments in the parameter's type.
    """
    states = next((count for name, count in STATES.items() if optimizer.startswith(name)), 2)
    return float(trained * (2 if "8bit" in optimizer else states * width))


def layer_bytes(
    model: Architecture, weights: int, compute: int, mask: int, *, full: bool, adapter_copies: int = 0
) -> float:
    """What autograd keeps of a token in one decoder layer until the backward pass reaches it.

    With hidden width d, n normalised numbers, query width q, MLP width f, m columns of a mask, b bytes of a weight and
    c of what a matrix product reads:

        norms        n (4 + b)    input in float32, and normalised for the gain, which only `full` training trains
        linear maps  2 d c        read by attention and by the MLP; under autocast each map casts its own copy
        attention    (4 q + m) c  query, key and value repeated to all heads, output; the mask as a bias
        MLP          4 f c        gate, its activation, up, their product

    Where LoRA's matrices read copies of their own, these are kept in place of what frozen linear maps read, which is
    `2 d c` and the MLP's product.

    Args:
        model: its sizes.
        weights: bytes of a stored parameter.
        compute: bytes of a computed number.
        mask: columns of a mask; 0: none.
        full: the norms are trained.
        adapter_copies: bytes that LoRA's matrices read as copies of their own (`Training.adapter_copies`).

    Source: derived from transformers' modelling code with scaled-dot-product attention and from PEFT's LoRA, and
    counted in tests/planning.
    """
    copies = 2 if compute == weights else len(model.linears) - 2
    shared = 0 if adapter_copies else copies * model.hidden + model.intermediate
    computed = shared + 4 * model.query + mask + 3 * model.intermediate
    return float(model.normed * (FLOAT32 + full * weights) + computed * compute + adapter_copies)


def cache_bytes(model: Architecture, width: int, rows: int, length: int) -> float:
    """Key-value cache: `2 k width` for each layer, row and token; a sliding layer keeps its window alone.

    Source: the definition; see Pope et al. 2022, Efficiently scaling transformer inference, section 3.3.
    """
    kept = sum(length if window is None else min(length, window) for window in model.windows)
    return float(2 * model.key * width * rows * kept)


def loss_logit_bytes(training: Training) -> float:
    """Two float32 chunks of 512 tokens; of whole distributions `LOSS_COPIES` or `CPU_LOSS_COPIES` chunks of 32 MiB.

    Source: `densepath.core.logprobs` and `densepath.core.heads`; a tile of TRL's fused head on a GPU takes as much.
    """
    tokens, vocabulary = training.rows * training.completion, training.model.vocabulary
    if training.whole_vocabulary:
        copies = LOSS_COPIES if training.machine.cuda else CPU_LOSS_COPIES
        return copies * min(tokens, default_chunk_tokens(vocabulary)) * vocabulary * FLOAT32
    return float(2 * min(tokens, DEFAULT_CHUNK_TOKENS) * vocabulary * FLOAT32)


def batch_tokens(training: Training) -> int:
    """Tokens of a micro-batch: padded to one sequence a row, or packed with shared prompts (`models.packing`)."""
    t = training
    if t.padded:
        return t.rows * (t.prompt + t.completion)
    return math.ceil(t.rows / t.group) * t.prompt + t.rows * t.completion


def held_terms(training: Training) -> Terms:
    """Process, weights, optimizer and communication: what a training stage holds at each of its moments."""
    t, model, machine = training, training.model, training.machine
    state = optimizer_bytes(t.trained, t.optimizer, FLOAT32 if t.adapter else t.weights)
    buffers = 0.0
    if machine.sharding.startswith("zero"):
        state = 12.0 * t.trained
        buffers = 2.0 * (DEEPSPEED_BUCKETS + (machine.sharding == "zero3") * min(model.parameters, DEEPSPEED_LIVE))
    elif machine.sharding == "fsdp2":  # the root's embeddings and two layers are gathered at once
        buffers = float((model.embedding * (2 - model.tied) + 2 * model.layer_linears) * t.weights)
    weights = weight_bytes(model, t.stored, four_bit=t.four_bit) + t.adapter * FLOAT32
    return {
        "process": machine.process,
        "policy": weights * machine.part("policy"),
        "optimizer": state * machine.part("optimizer"),
        "buffers": buffers,
    }


def training_moments(training: Training) -> Moments:
    """Moments of an optimizer step."""
    t, model, always, tokens = training, training.model, held_terms(training), batch_tokens(training)
    full, several, ddp = not t.adapter, t.accumulation > 1, t.machine.sharding == "ddp"
    # Autocast casts each weight that is not quantised; those of trained weights stay through the forward pass.
    casts = 0 if t.four_bit or t.compute == t.weights else model.layer_linears * t.compute
    mask = t.padded * (t.prompt + t.completion)
    trained_norms, copies = full or t.four_bit, t.adapter_copies
    layer = casts + tokens * layer_bytes(model, t.weights, t.compute, mask, full=trained_norms, adapter_copies=copies)
    stream = tokens * model.hidden * t.weights
    kept = model.layers * (stream if t.checkpointing else layer)
    # While a layer is passed, its activations are there: kept, or computed again where checkpointing kept its input.
    # The gradients of its MLP are those of two factors, when what the product was is gone; or the two of the product,
    # of which that of LoRA's copy comes in PEFT's float32.
    passed = stream + tokens * model.intermediate * (t.compute + (FLOAT32 if copies else t.compute))
    again = passed + layer if t.checkpointing else passed
    # DDP's buckets hold the gradients a second time.
    width = FLOAT32 if t.adapter and t.stored == t.weights else t.stored
    gradients = (1 + ddp) * t.trained * width * t.machine.part("gradients")
    head = full * model.embedding * FLOAT32
    early = head + (gradients if several or ddp else 0)
    # A tied embedding's gradient comes twice, from the head and from the lookup, and is added up at the very end:
    # into one of the two, or into that of the micro-batches before.
    ends = gradients + model.tied * head * (1 + several)
    begins = kept + full * t.checkpointing * model.layers * casts
    return {
        "backward begins": {**always, "gradients": early, "activations": begins, "logits": loss_logit_bytes(t)},
        "in the last layer": {**always, "gradients": early, "activations": kept + again},
        "backward ends": {**always, "gradients": ends, "activations": passed + layer},
    }


def sampling_terms(training: Training, rows: int, models: int = 1, *, own: bool = True) -> Terms:
    """Cache, rows of the vocabulary and one layer of a forward pass while `rows` completions are sampled.

    densepath's sampler takes as many at once as hold its token budget, and reads a prompt once for its group;
    transformers' (`own=False`) takes all, and reads each. A row has logits and log-probabilities of each model,
    probabilities and their float64 running sum; a layer gate, up and their product.
    """
    t, model, length = training, training.model, training.prompt + training.completion
    together = min(rows, max(1, SAMPLING_TOKENS // length)) if own else rows
    read = t.prompt * (math.ceil(together / t.group) if own else rows)
    return {
        "KV cache": models * cache_bytes(model, t.weights, together, length),
        "logits": float((3 + 2 * models) * together * model.vocabulary * FLOAT32),
        "activations": 3.0 * read * (model.hidden * t.weights + model.intermediate * t.compute),
    }
