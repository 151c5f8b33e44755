"""The stages of a run and what is alive at each of their moments: a plan.

A stage's need is the largest of its moments: where the backward pass begins (all activations, no gradients yet), in
its first layer, where it ends (all gradients, one layer's activations), sampling, and scoring by the frozen models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from densepath.models.packing import packed_shapes
from densepath.models.sampling import DEFAULT_TOKEN_BUDGET as SAMPLING_TOKENS
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET as SCORING_TOKENS
from densepath.planning import memory
from densepath.planning.architecture import Architecture
from densepath.planning.memory import FLOAT32, Adapter, Sharding

TERMS = (
    "process",
    "policy",
    "frozen models",
    "gradients",
    "optimizer",
    "activations",
    "hidden states",
    "logits",
    "KV cache",
    "buffers",
    "vLLM",
)
"""What is counted; docs/plan.md says how."""
LOSS_COPIES, VISIT_COPIES = 11.25, 7
"""Chunks of whole distributions that a loss over all actions with a KL of its own holds at once, forward and backward,
and the scoring before it; a loss with one of the two holds fewer. Counted in tests/planning."""
DEEPSPEED_BUCKET = 500_000_000
"""Elements of a reduce or gather bucket (`reduce_bucket_size`, DeepSpeed's default)."""
DEEPSPEED_LIVE = 1_000_000_000
"""Gathered parameters that ZeRO-3 keeps at most (`stage3_max_live_parameters`, DeepSpeed's default)."""


@dataclass(frozen=True)
class Machine:
    """One process's device.

    Attributes:
        cuda: a GPU; else the CPU and the memory of the process.
        memory: bytes of it; None: not known, nothing is refused.
        process: bytes before any model.
        processes: how many there are.
        sharding: how they split the trained model.
    """

    cuda: bool
    memory: float | None
    process: float
    processes: int = 1
    sharding: Sharding = Sharding.NONE


@dataclass(frozen=True)
class Training:
    """What one training stage asks for, a process.

    Attributes:
        rows: sequences of one micro-batch.
        prompt: tokens of a prompt.
        completion: tokens of a completion.
        group: completions of one prompt that stand in the same micro-batch.
        accumulation: micro-batches of one step.
        optimizer: transformers' name of it.
        checkpointing: gradient checkpointing.
        compute: bytes of a computed number: 2 under autocast or with half-precision weights.
        rollouts: completions sampled at once; 0 for SFT.
        all_action: the immediate reward is taken over all actions.
        state_kl: the exact KL at each state is a loss of its own.
        token_budget: of a scoring pass.
    """

    rows: int
    prompt: int
    completion: int
    group: int
    accumulation: int
    optimizer: str
    checkpointing: bool
    compute: int
    rollouts: int = 0
    all_action: bool = False
    state_kl: bool = False
    token_budget: int = SCORING_TOKENS

    @property
    def whole_vocabulary(self) -> bool:
        """The loss is taken from whole distributions."""
        return self.all_action or self.state_kl


@dataclass(frozen=True)
class Setup:
    """A recipe's facts that decide its memory.

    Attributes:
        architecture: of the model.
        weights: bytes of a stored parameter.
        adapter: LoRA; None trains all weights.
        four_bit: the base is quantised in the training stages.
        sft: the SFT stage (and its continuation).
        dpr: the DPR stage.
        references: frozen models beside the SFT model that the reward reads: 0 or 1.
        shared_reference: under LoRA it is the base, or an adapter on it.
        validation_rows: completions that the choice of the reference samples; 0 where there is none to make.
        evaluation_rows: completions that the evaluation samples.
        vllm: share of the GPU of a colocated vLLM, or 0.
        vllm_length: longest sequence that vLLM is asked for, tokens.
        vllm_parallel: GPUs over which one vLLM splits its weights.
        vllm_sleeps: it gives its share back while training.
        samples: completions come from this process, and not from vLLM.
        gathers: ZeRO-3 puts the whole policy together to sample from it.
    """

    architecture: Architecture
    weights: int
    adapter: Adapter | None
    four_bit: bool
    sft: Training
    dpr: Training
    references: int
    shared_reference: bool
    validation_rows: int
    evaluation_rows: int
    vllm: float = 0.0
    vllm_length: int = 0
    vllm_parallel: int = 1
    vllm_sleeps: bool = False
    samples: bool = True
    gathers: bool = True

    @property
    def trained(self) -> int:
        """Parameters that the optimizer changes."""
        return self.architecture.parameters if self.adapter is None else self.adapter.parameters(self.architecture)

    @property
    def trained_width(self) -> int:
        """Bytes of one of them: PEFT keeps an adapter in float32 whatever the base is."""
        return self.weights if self.adapter is None else FLOAT32

    @property
    def adapter_bytes(self) -> int:
        """An adapter's matrices; 0 without one."""
        return 0 if self.adapter is None else self.trained * FLOAT32


@dataclass(frozen=True)
class Moment:
    """What is alive at one point of a stage: name of a term -> bytes."""

    name: str
    terms: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class Stage:
    """A stage and its moments."""

    name: str
    moments: tuple[Moment, ...]

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)


@dataclass(frozen=True)
class Plan:
    """Every stage of a run on one device."""

    setup: Setup
    machine: Machine
    stages: tuple[Stage, ...] = field(default=())

    @property
    def peak(self) -> Stage:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: stage.peak.total)


def make_plan(setup: Setup, machine: Machine) -> Plan:
    """The memory of each stage of `densepath run`, per process."""
    stages = [Stage("SFT", tuple(_training(setup, machine, setup.sft)))]
    if setup.validation_rows:
        stages.append(Stage("selection", (_compared(setup, machine, setup.validation_rows, choosing=True),)))
    stages.append(Stage("DPR", tuple(_dpr(setup, machine))))
    stages.append(Stage("evaluation", (_compared(setup, machine, setup.evaluation_rows, choosing=False),)))
    return Plan(setup, machine, tuple(stages))


def _shard(value: float, machine: Machine, term: str) -> float:
    return value / machine.processes if term in machine.sharding.divides else value


def _policy(setup: Setup, machine: Machine, training: Training) -> dict[str, float]:
    """Process, weights, optimizer and communication: what a training stage holds at each of its moments."""
    sharding, architecture = machine.sharding, setup.architecture
    halved = sharding.is_deepspeed and training.compute == 2
    weights = memory.weight_bytes(architecture, 2 if halved else setup.weights, four_bit=setup.four_bit)
    state = memory.optimizer_bytes(setup.trained, training.optimizer, setup.trained_width, sharding)
    buffers = 0.0
    if sharding.is_deepspeed:
        live = min(architecture.parameters, DEEPSPEED_LIVE) if sharding is Sharding.ZERO3 else 0
        buffers = 2.0 * (2 * DEEPSPEED_BUCKET + live)
    elif sharding is Sharding.FSDP2:  # the root's embeddings and two layers are gathered at once
        root = architecture.embedding * (1 if architecture.tied else 2)
        buffers = float((root + 2 * architecture.layer_linears) * setup.weights)
    return {
        "process": machine.process,
        "policy": _shard(weights + setup.adapter_bytes, machine, "policy"),
        "optimizer": _shard(state, machine, "optimizer"),
        "buffers": buffers,
    }


def _gradients(setup: Setup, machine: Machine, training: Training) -> float:
    """One number a trained weight; DDP's buckets hold them a second time."""
    halved = machine.sharding.is_deepspeed and training.compute == 2
    copies = 2 if machine.sharding is Sharding.DDP else 1
    whole = copies * setup.trained * (2 if halved else setup.trained_width)
    return _shard(whole, machine, "gradients")


def _training(setup: Setup, machine: Machine, training: Training) -> list[Moment]:
    """Moments of an optimizer step."""
    a, weights, compute, adapter = setup.architecture, setup.weights, training.compute, setup.adapter
    always = _policy(setup, machine, training)
    (shape,) = packed_shapes(*_sequences(training.rows, training), padded=_padded(setup, machine))
    tokens, width = shape.rows * shape.width, shape.width if shape.masked else None
    layer = memory.layer_bytes(a, weights, compute, tokens, width, adapter=None if setup.four_bit else adapter)
    stream = float(tokens * a.hidden * weights)
    kept = a.layers * (stream if training.checkpointing else layer)
    # While a layer is passed, its activations are there: kept, or computed again where checkpointing kept its input.
    # The gradients of its MLP are those of two factors, when what the product was is gone.
    passed = stream + 2 * tokens * a.intermediate * compute
    again = passed + layer if training.checkpointing else passed
    # Autocast keeps the casts of trained weights through a whole pass, or through that of one layer.
    casts = a.layers * a.layer_linears * 2 if machine.cuda and compute != weights and adapter is None else 0
    held = {**always, "buffers": always["buffers"] + casts}
    gradients = _gradients(setup, machine, training)
    head = float(a.embedding * FLOAT32) if adapter is None else 0.0
    early = head + (gradients if training.accumulation > 1 or machine.sharding is Sharding.DDP else 0.0)
    # A tied embedding's gradient comes twice, from the head and from the lookup, and is added up at the very end:
    # into one of the two, or into that of the micro-batches before.
    twice = head * (2 if training.accumulation > 1 else 1) if a.tied else 0.0
    begins = {"gradients": early, "activations": kept, "logits": _loss_logits(setup, machine, training)}
    return [
        Moment("backward begins", {**held, **begins}),
        Moment("in the last layer", {**always, "gradients": early, "activations": kept + again}),
        Moment("backward ends", {**always, "gradients": gradients + twice, "activations": passed + layer}),
    ]


def _loss_logits(setup: Setup, machine: Machine, training: Training) -> float:
    projected = training.rows * training.completion
    if training.whole_vocabulary:
        return memory.distribution_bytes(setup.architecture, projected, LOSS_COPIES)
    if machine.cuda:
        return memory.fused_logit_bytes(setup.architecture, training.compute, projected)
    return memory.chunk_logit_bytes(setup.architecture, projected)


def _padded(setup: Setup, machine: Machine) -> bool:
    """Whether rows are padded: nor can packing be tried on a model that ZeRO-3 loads in pieces."""
    return not setup.architecture.packs or machine.sharding is Sharding.ZERO3


def _sequences(rows: int, training: Training) -> tuple[list[range], list[range]]:
    """Prompts and completions of the planned lengths; each group has a prompt of its own."""
    starts = [(row // training.group) * training.prompt for row in range(rows)]
    return [range(start, start + training.prompt) for start in starts], [range(training.completion)] * rows


def _frozen(setup: Setup, machine: Machine) -> float:
    """Copies of the SFT model and the reference beside the policy; adapters where one base serves all.

    They are spread over the processes where the policy is, in half precision under ZeRO-3.
    """
    halved = machine.sharding is Sharding.ZERO3 and setup.dpr.compute == 2
    models = 1 + setup.references
    adapters = 0 if setup.adapter is None else models if setup.shared_reference else 1
    whole = memory.weight_bytes(setup.architecture, 2 if halved else setup.weights)
    held = adapters * setup.adapter_bytes + (models - adapters) * whole
    return _shard(held, machine, "policy")


def _dpr(setup: Setup, machine: Machine) -> list[Moment]:
    training = setup.dpr
    share = setup.vllm * (machine.memory or 0.0)
    frozen = {"frozen models": _frozen(setup, machine)}
    asleep = {**frozen, "vLLM": 0.0 if setup.vllm_sleeps else share}
    models = (1 + setup.references) * training.whole_vocabulary
    # Last hidden states of the SFT model and the reference at each token of the completions.
    token = training.completion * setup.architecture.hidden * setup.weights
    in_loss = {**asleep, "hidden states": float(models * token * (training.rollouts + training.rows))}
    moments = [Moment(moment.name, {**moment.terms, **in_loss}) for moment in _training(setup, machine, training)]
    always = {**_policy(setup, machine, training), **frozen, "vLLM": share}
    own = "policy" not in machine.sharding.divides
    if own:
        always["buffers"] = 0.0
    if setup.samples:
        sampled = _sampled(setup, training.compute, training.rollouts, models=1, own_sampler=own)
        if machine.sharding is Sharding.ZERO3 and setup.gathers:
            sampled["policy"] = always["policy"] * machine.processes
        moments.append(Moment("sampling", {**always, **sampled}))
    if share:
        moments.append(Moment("vLLM samples", always))
    scored = _scored(setup, machine, training)
    if training.whole_vocabulary:
        # Of all actions the policy's own are kept beside them; all are joined into one tensor a model.
        scored["hidden states"] = 2.0 * (models + training.all_action) * token * training.rollouts
        visited = training.rollouts * training.completion
        scored["logits"] = memory.distribution_bytes(setup.architecture, visited, VISIT_COPIES)
    moments.append(Moment("scoring", {**always, **asleep, **scored}))
    return moments


def _sampled(setup: Setup, compute: int, rows: int, *, models: int, own_sampler: bool = True) -> dict[str, float]:
    """Cache, logits and one layer of a forward pass while `rows` completions are sampled.

    densepath's sampler takes as many at once as hold its token budget, and reads a prompt once for its group;
    transformers' takes all, and reads each.
    """
    training, architecture = setup.dpr, setup.architecture
    length = training.prompt + training.completion
    together = min(rows, max(1, SAMPLING_TOKENS // length)) if own_sampler else rows
    read = training.prompt * (-(-together // training.group) if own_sampler else rows)
    return {
        "KV cache": models * memory.cache_bytes(architecture, setup.weights, together, length),
        "logits": memory.sampling_logit_bytes(architecture, together, models),
        "activations": memory.forward_bytes(architecture, setup.weights, compute, read, training.prompt),
    }


def _scored(setup: Setup, machine: Machine, training: Training) -> dict[str, float]:
    """One batch of a scoring pass."""
    sequences = _sequences(training.rollouts, training)
    shapes = packed_shapes(*sequences, token_budget=training.token_budget, padded=_padded(setup, machine))
    shape = max(shapes, key=lambda shape: shape.rows * shape.width)
    tokens, width = shape.rows * shape.width, shape.width if shape.masked else None
    return {
        "activations": memory.forward_bytes(setup.architecture, setup.weights, setup.weights, tokens, width),
        "logits": memory.chunk_logit_bytes(setup.architecture, tokens),
    }


def _compared(setup: Setup, machine: Machine, rows: int, *, choosing: bool) -> Moment:
    """Sampling by frozen models: the choice of the reference, two at once; the evaluation, one arm after the other."""
    whole, models = memory.weight_bytes(setup.architecture, setup.weights), 2 + setup.references
    held = 2 * whole if choosing else models * whole
    if setup.adapter is not None and not choosing:
        apart = 0 if setup.shared_reference else setup.references
        held = (1 + apart) * whole + (models + 1 - apart) * setup.adapter_bytes
    sampled = _sampled(setup, setup.weights, rows, models=2 if choosing else 1)
    return Moment("sampling", {"process": machine.process, "frozen models": held, **sampled})
