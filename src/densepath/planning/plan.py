"""The stages of a run and what is alive at each of their moments: a plan.

A stage's need is the largest of its moments: where the backward pass begins (all activations, no gradients yet), where
it ends (all gradients, no activations), the optimizer's step, sampling, and scoring by the frozen models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from densepath.core.logprobs import DEFAULT_CHUNK_TOKENS
from densepath.models.packing import packed_shapes
from densepath.models.sampling import DEFAULT_TOKEN_BUDGET as SAMPLING_TOKENS
from densepath.models.scoring import DEFAULT_TOKEN_BUDGET as SCORING_TOKENS
from densepath.planning import memory
from densepath.planning.architecture import Architecture
from densepath.planning.memory import FLOAT32, Adapter, Precision, Sharding

TERMS = {
    "process": "what the process holds without a model: libraries, or the CUDA context and the allocator's reserve",
    "policy": "weights of the model that is trained, adapters included",
    "frozen models": "weights of the SFT model and the reference, where they are copies",
    "gradients": "of the trained weights, and the buckets that several processes reduce them in",
    "optimizer": "its state",
    "activations": "what the backward pass needs, or one layer of a forward pass",
    "hidden states": "of the frozen models at each completion token, kept where the loss reads whole distributions",
    "logits": "rows of the vocabulary's width that exist at once",
    "KV cache": "keys and values of the completions that are sampled together",
    "buffers": "casts of autocast, gathered layers and communication buffers",
    "heap": "what the C library's heap holds and cannot hand out again, on a CPU",
    "vLLM": "the share of the GPU that a colocated vLLM takes",
}
"""Name of each term and what it counts."""


@dataclass(frozen=True)
class Machine:
    """One process's device.

    Attributes:
        cuda: a GPU; else the CPU and the memory of the process.
        memory: bytes of it; None: not known, nothing is refused.
        process: bytes before any model.
        processes: how many there are.
        sharding: how they split the trained model.
        heap_limit: bytes from which a tensor is not taken from the heap; 0 where there is no such heap.
    """

    cuda: bool
    memory: float | None
    process: float
    processes: int = 1
    sharding: Sharding = Sharding.NONE
    heap_limit: float = 0.0


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
        precision: bytes of an element.
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
    precision: Precision
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

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return trained_parameters(self.setup)


def trained_parameters(setup: Setup) -> int:
    """Parameters that the optimizer changes."""
    if setup.adapter is None:
        return setup.architecture.parameters
    return memory.adapter_parameters(setup.architecture, setup.adapter)


def make_plan(setup: Setup, machine: Machine) -> Plan:
    """The memory of each stage of `densepath run`, per process."""
    stages = [Stage("SFT", tuple(_training(setup, machine, setup.sft)))]
    if setup.validation_rows:
        stages.append(Stage("selection", (_preview(setup, machine),)))
    stages.append(Stage("DPR", tuple(_dpr(setup, machine))))
    stages.append(Stage("evaluation", (_evaluation(setup, machine),)))
    return Plan(setup, machine, tuple(stages))


# -- moments -----------------------------------------------------------------------------------------------------


def _shard(value: float, machine: Machine, split: bool) -> float:
    return value / machine.processes if split else value


def _adapter_bytes(setup: Setup) -> float:
    """An adapter's matrices: PEFT keeps them in float32 whatever the base is."""
    return 0.0 if setup.adapter is None else trained_parameters(setup) * max(FLOAT32, setup.weights)


def _model_bytes(setup: Setup, precision: Precision) -> float:
    return memory.weight_bytes(setup.architecture, precision, four_bit=setup.four_bit)


def _policy(setup: Setup, machine: Machine, training: Training) -> dict[str, float]:
    """Process, weights and optimizer: what a training stage holds at each of its moments."""
    sharding, trained = machine.sharding, trained_parameters(setup)
    stored = Precision(2, 2) if sharding.is_deepspeed and training.precision.compute == 2 else training.precision
    weights = _model_bytes(setup, stored) + _adapter_bytes(setup)
    state_precision = training.precision if setup.adapter is None else Precision(FLOAT32, training.precision.compute)
    state = memory.optimizer_bytes(trained, training.optimizer, state_precision, sharding)
    return {
        "process": machine.process,
        "policy": _shard(weights, machine, sharding.shards_weights),
        "optimizer": _shard(state, machine, sharding.shards_optimizer),
    }


def _gradients(setup: Setup, machine: Machine, training: Training) -> float:
    """One number a trained weight; DDP's buckets hold them a second time."""
    trained = trained_parameters(setup)
    width = FLOAT32 if setup.adapter is not None else training.precision.weights
    if machine.sharding.is_deepspeed and training.precision.compute == 2:
        width = 2
    copies = 2 if machine.sharding is Sharding.DDP else 1
    return _shard(copies * trained * width, machine, machine.sharding.shards_gradients)


def _buffers(setup: Setup, machine: Machine) -> float:
    """Gathered layers and communication buckets of a sharded model."""
    architecture = setup.architecture
    if machine.sharding in (Sharding.ZERO1, Sharding.ZERO2):
        return 2.0 * memory.DEEPSPEED_BUCKET * 2
    if machine.sharding is Sharding.ZERO3:
        return 2.0 * (memory.DEEPSPEED_BUCKET * 2 + min(architecture.parameters, memory.DEEPSPEED_LIVE))
    if machine.sharding is Sharding.FSDP2:
        root = architecture.embedding * (1 if architecture.tied else 2)
        return float((root + 2 * architecture.layer_linears) * setup.weights)
    return 0.0


def _training(setup: Setup, machine: Machine, training: Training) -> list[Moment]:
    """Moments of an optimizer step."""
    architecture, precision, adapter = setup.architecture, training.precision, setup.adapter
    always = _policy(setup, machine, training)
    always["buffers"] = _buffers(setup, machine)
    padded = _padded(setup, machine)
    (shape,) = packed_shapes(*_sequences(training.rows, training), padded=padded)
    tokens, width = shape.rows * shape.width, shape.width if shape.masked else None
    projected = training.rows * training.completion
    gradients = _gradients(setup, machine, training)
    head = float(architecture.embedding * FLOAT32) if adapter is None else 0.0
    early = gradients if training.accumulation > 1 or machine.sharding is Sharding.DDP else 0.0
    logits = memory.head_bytes(architecture, precision, projected, cuda=machine.cuda)
    if training.whole_vocabulary:
        copies = memory.loss_copies(all_action=training.all_action, state_kl=training.state_kl)
        logits = memory.distribution_bytes(architecture, projected, copies)
    layer = memory.layer_bytes(architecture, precision, tokens, width, adapter=adapter, four_bit=setup.four_bit)
    kept = architecture.layers * layer
    if training.checkpointing:
        kept = memory.checkpoint_bytes(architecture, precision, tokens)
    begins = {
        **always,
        "gradients": early + head,
        "activations": kept,
        "logits": logits,
        "heap": memory.heap_bytes(
            architecture, tokens, machine.heap_limit, checkpointing=training.checkpointing, adapter=adapter
        ),
    }
    casts = memory.cast_bytes(architecture, precision, adapter) if machine.cuda else 0.0
    begins["buffers"] += casts
    # The last layer is passed beside what all keep, the first beside the gradients of all; either is computed again
    # where checkpointing kept its input alone.
    passing = memory.passing_bytes(architecture, precision, tokens)
    last, first = {**begins, "logits": 0.0}, {**always, "gradients": gradients}
    last["activations"] = passing + (kept + layer if training.checkpointing else kept)
    first["activations"] = passing + layer
    if training.checkpointing:
        last["buffers"] = first["buffers"] = always["buffers"] + casts / architecture.layers
    # A tied embedding's gradient comes twice, from the head and from the lookup, and is added up at the very end:
    # into one of the two, or into that of the micro-batches before.
    twice = head if architecture.tied else 0.0
    ends = {**always, "gradients": gradients + (2 * twice if training.accumulation > 1 else twice)}
    return [
        Moment("backward begins", begins),
        Moment("in the last layer", last),
        Moment("in the first layer", first),
        Moment("backward ends", ends),
    ]


def _padded(setup: Setup, machine: Machine) -> bool:
    """Whether rows are padded: nor can packing be tried on a model that ZeRO-3 loads in pieces."""
    return not setup.architecture.packs or machine.sharding is Sharding.ZERO3


def _sequences(rows: int, training: Training) -> tuple[list[range], list[range]]:
    """Prompts and completions of the planned lengths; each group has a prompt of its own."""
    prompts = []
    for row in range(rows):
        start = (row // training.group) * training.prompt
        prompts.append(range(start, start + training.prompt))
    return prompts, [range(training.completion)] * rows


def _frozen(setup: Setup, machine: Machine) -> float:
    """Copies of the SFT model and the reference beside the policy; adapters where one base serves all.

    They are spread over the processes where the policy is, in half precision under ZeRO-3.
    """
    width = 2 if machine.sharding is Sharding.ZERO3 and setup.dpr.precision.compute == 2 else setup.weights
    whole = memory.weight_bytes(setup.architecture, Precision(width, width))
    if setup.adapter is None:
        held = (1 + setup.references) * whole
    elif setup.shared_reference:
        held = (1 + setup.references) * _adapter_bytes(setup)
    else:
        held = _adapter_bytes(setup) + setup.references * whole
    return _shard(held, machine, machine.sharding.shards_weights)


def _dpr(setup: Setup, machine: Machine) -> list[Moment]:
    training = setup.dpr
    frozen = _frozen(setup, machine)
    share = setup.vllm * (machine.memory or 0.0)
    kept = _kept_hidden(setup, training, training.rollouts)
    asleep = {"frozen models": frozen, "vLLM": 0.0 if setup.vllm_sleeps else share}
    in_loss = {**asleep, "hidden states": kept + _kept_hidden(setup, training, training.rows)}
    moments = [Moment(moment.name, {**moment.terms, **in_loss}) for moment in _training(setup, machine, training)]
    always = {**_policy(setup, machine, training), "frozen models": frozen, "vLLM": share}
    always["buffers"] = _buffers(setup, machine) if machine.sharding.shards_weights else 0.0
    if setup.samples:
        own = not machine.sharding.shards_weights
        sampled = _sampled(setup, training.precision, training.rollouts, training, models=1, own_sampler=own)
        if machine.sharding is Sharding.ZERO3 and setup.gathers:
            sampled["policy"] = always["policy"] * machine.processes
        moments.append(Moment("sampling", {**always, **sampled}))
    if share:
        moments.append(Moment("vLLM samples", always))
    scored = _scored(setup, machine, training)
    if training.whole_vocabulary:
        visited = training.rollouts * training.completion
        # Of all actions the policy's own are kept beside them; all are joined into one tensor a model.
        policy = visited * setup.architecture.hidden * FLOAT32 if training.all_action else 0
        scored["hidden states"] = 2 * (kept + policy)
        copies = memory.visit_copies(all_action=training.all_action)
        scored["logits"] = memory.distribution_bytes(setup.architecture, visited, copies)
    moments.append(Moment("scoring", {**always, **asleep, **scored}))
    return moments


def _kept_hidden(setup: Setup, training: Training, rows: int) -> float:
    """Last hidden states of the SFT model and the reference at each token of the completions."""
    if not training.whole_vocabulary:
        return 0.0
    models = 1 + setup.references
    return float(models * rows * training.completion * setup.architecture.hidden * setup.weights)


def _sampled(
    setup: Setup, precision: Precision, rows: int, training: Training, *, models: int, own_sampler: bool = True
) -> dict[str, float]:
    """Cache, logits and one layer of a forward pass while `rows` completions are sampled.

    densepath's sampler takes as many at once as hold its token budget, and reads a prompt once for its group;
    transformers' takes all, and reads each.
    """
    length = training.prompt + training.completion
    together = min(rows, max(1, SAMPLING_TOKENS // length)) if own_sampler else rows
    prompts = -(-together // training.group) if own_sampler else rows
    return {
        "KV cache": models * memory.cache_bytes(setup.architecture, precision, together, length),
        "logits": memory.sampling_logit_bytes(setup.architecture, together, models),
        "activations": memory.forward_bytes(setup.architecture, precision, prompts * training.prompt, training.prompt),
    }


def _scored(setup: Setup, machine: Machine, training: Training) -> dict[str, float]:
    """One batch of a scoring pass."""
    shapes = packed_shapes(
        *_sequences(training.rollouts, training),
        token_budget=training.token_budget,
        padded=_padded(setup, machine),
    )
    shape = max(shapes, key=lambda shape: shape.rows * shape.width)
    tokens = shape.rows * shape.width
    precision = Precision(setup.weights, setup.weights)
    return {
        "activations": memory.forward_bytes(
            setup.architecture, precision, tokens, shape.width if shape.masked else None
        ),
        "logits": memory.scored_logit_bytes(setup.architecture, min(tokens, DEFAULT_CHUNK_TOKENS)),
    }


def _preview(setup: Setup, machine: Machine) -> Moment:
    """The choice of the reference: SFT model and candidate are sampled side by side, adapters folded in."""
    precision = Precision(setup.weights, setup.weights)
    sampled = _sampled(setup, precision, setup.validation_rows, setup.dpr, models=2)
    return Moment(
        "sampling",
        {
            "process": machine.process,
            "frozen models": 2 * memory.weight_bytes(setup.architecture, precision),
            **sampled,
        },
    )


def _evaluation(setup: Setup, machine: Machine) -> Moment:
    """SFT model, reference and one arm at a time; under LoRA adapters on one base."""
    precision = Precision(setup.weights, setup.weights)
    models, whole = 2 + setup.references, memory.weight_bytes(setup.architecture, precision)
    frozen = models * whole
    if setup.adapter is not None:
        own = 0 if setup.shared_reference else setup.references
        frozen = (1 + own) * whole + (models + 1 - own) * _adapter_bytes(setup)
    sampled = _sampled(setup, precision, setup.evaluation_rows, setup.dpr, models=1)
    return Moment("sampling", {"process": machine.process, "frozen models": frozen, **sampled})
