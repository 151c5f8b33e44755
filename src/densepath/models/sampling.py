"""Completions of a batch of prompts, with the log-probability of every sampled token.

Each row draws its token `t` by inverse CDF from the `t`-th uniform of a stream of its own, so a completion depends
on its prompt, its row and the seed: not on batch size, padding or the other prompts (beyond the rounding of matrix
products, which changes a token only when its uniform lies within ~1e-6 of a border).

Top-k and top-p are not offered: they sample from another distribution than the one whose gradient REINFORCE takes,
and the log-probabilities of the truncated distribution are not the policy's.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from densepath.core.heads import row_parts
from densepath.core.logprobs import contrastive_logits, entropy_of_logprobs, lift
from densepath.core.mixture import subtractive_logprobs
from densepath.data.context import check_context
from densepath.errors import DataError, NumericalError, UsageError
from densepath.models.compat import computed_on, context_length, embedding_rows
from densepath.models.decoding import Decoder, RowBatch, inference
from densepath.models.kinds import once_for_kind
from densepath.models.logits import causal_lm, length_border
from densepath.models.packing import common_beginning
from densepath.models.prepacked import LEAST_STEPS, prepacked

DEFAULT_TOKEN_BUDGET = 16_384
"""Tokens in one batch's cache (rows x (longest prompt + budget)): 0.8 GB for SmolLM2-135M in float32."""

DROP_FRACTION = 0.125
"""Finished rows leave the batch once they make up this part of it; leaving copies the cache."""

LEAST_SAVED_POSITIONS = 32
"""Positions that reading a common beginning once must save: a pass of its own reads all weights once more."""

FLOOR = 1e-3
"""Share of pi_SFT that subtractive decoding leaves to each token: a default of our own. It keeps every answer of SFT's
possible, and something to sample from where all of a row's next tokens would be taken away."""


class ContrastKind(str, Enum):
    """How sampling moves away from a second model."""

    CONTRASTIVE = "contrastive"  # (1 + alpha) log pi - alpha log pi_second, token by token
    SUBTRACTIVE = "subtractive"  # pi - c exp(-R_<t) pi_second, R_<t the log-ratio of the row so far


@dataclass(frozen=True)
class Contrast:
    """A second model that sampling moves away from.

    Attributes:
        model: of the same tokenizer, or where it lies until it is loaded. Where one of the two has spare embedding
            rows, the ids that both have are sampled alone, from what is normalised over them.
        kind: how.
        strength: contrastive: alpha, above 0, 1/beta as a preview of DPR; subtractive: c in [0, 1].

    Raises:
        UsageError: a strength out of its range.
    """

    model: Any
    kind: ContrastKind
    strength: float

    def __post_init__(self) -> None:
        if self.kind is ContrastKind.CONTRASTIVE and not 0 < self.strength < math.inf:
            raise UsageError(f"contrastive decoding needs a finite alpha above 0, not {self.strength}")
        if self.kind is ContrastKind.SUBTRACTIVE and not 0 <= self.strength <= 1:
            raise UsageError(f"subtractive decoding needs a c in [0, 1], not {self.strength}")


@dataclass(frozen=True)
class Samples:
    """Completions in prompt-major order: row `i * num_generations + j` is the j-th completion of prompt i.

    Attributes:
        completion_ids: up to and including the first EOS, which is an action like any other.
        logprobs: nats, one for each token of `completion_ids`, under the distribution that was sampled from.
        truncated: True where no EOS came within `max_completion_length` tokens.
        hidden: (completion tokens, width) last hidden states that each row's tokens were drawn from, on the model's
            device; empty unless they are kept, and where a compiled model does not show them.
        entropies: nats, likewise of the distribution that each token was drawn from; empty unless they are kept.
        of_models: with a contrast, log-probabilities of the tokens under the model and under the second one as they
            are, nats, for each row; empty without.
    """

    completion_ids: list[list[int]]
    logprobs: list[list[float]]
    truncated: list[bool]
    hidden: list[Tensor] = field(default_factory=list)
    entropies: list[list[float]] = field(default_factory=list)
    of_models: list[tuple[list[float], list[float]]] = field(default_factory=list)


@dataclass(frozen=True)
class Draw:
    """Completions of each prompt that are drawn alike.

    Attributes:
        temperature: divides the logits. 0 takes the most probable token, and log-probabilities are those at 1.
        num_generations: how many of each prompt.
        generator: gives one seed for each row; None uses torch's global generator.

    Raises:
        UsageError: a value out of its range.
    """

    temperature: float = 1.0
    num_generations: int = 1
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.num_generations < 1:
            raise UsageError(f"num_generations must be at least 1, not {self.num_generations}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"temperature must be 0 (greedy) or a positive number, not {self.temperature}")


@dataclass(frozen=True)
class Sampling:
    """What all completions of a call share; `sample` says what each is.

    Raises:
        UsageError: a value out of its range.
    """

    max_completion_length: int
    eos_token_ids: Sequence[int]
    pad_token_id: int = 0
    batch_size: int | None = None
    token_budget: int = DEFAULT_TOKEN_BUDGET
    contrast: Contrast | None = None
    keep_hidden: bool = False
    keep_entropies: bool = False

    def __post_init__(self) -> None:
        if self.max_completion_length < 1 or (self.batch_size is not None and self.batch_size < 1):
            raise UsageError(
                "max_completion_length and batch_size must be at least 1, "
                f"not {self.max_completion_length} and {self.batch_size}"
            )


def sample(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    *,
    num_generations: int = 1,
    max_completion_length: int,
    temperature: float = 1.0,
    eos_token_ids: Sequence[int],
    generator: torch.Generator | None = None,
    pad_token_id: int = 0,
    batch_size: int | None = None,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    contrast: Contrast | None = None,
    keep_hidden: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Samples:
    """Completions of each prompt: `y_t ~ softmax(z(x, y_<t) / temperature)`.

    Contrastive decoding: `z = (1 + alpha) log softmax(z_model) - alpha log softmax(z_second)`, which equals
    `(1 + alpha) z_model - alpha z_second` after the softmax. For the SFT model and its reference it is the
    training-free relative of DPR, at `alpha = 1 / beta`.

    Subtractive decoding: `z = log max(pi(a|s) - c exp(-R_<t) pi_second(a|s), FLOOR pi(a|s))`, normalised.
    `R_<t = log pi - log pi_second` of the row's tokens so far is that of the models as they are, at temperature 1,
    whatever the temperature: it says what was written, and the temperature only sharpens the distribution that comes
    of it. At temperature 1 the completions are exactly `(pi - c pi_second) / (1 - c)` where the floor cuts nothing.

    Args:
        model: any causal language model, PEFT included; the modes of its modules are restored afterwards.
        prompt_ids: token ids of each prompt, unpadded. An EOS inside of a prompt ends nothing.
        num_generations: completions of each prompt.
        max_completion_length: tokens, the EOS included.
        temperature: divides the logits. 0 takes the most probable token, and log-probabilities are those at 1.
        eos_token_ids: a completion ends after the first of them; empty: always `max_completion_length` tokens.
        generator: gives one seed for each row; None uses torch's global generator.
        pad_token_id: fills the left of shorter prompts; its value changes nothing.
        batch_size: most rows decoded at once; None leaves it to `token_budget`.
        token_budget: most tokens in the cache of one batch, unless a single row needs more.
        contrast: the model to move away from, and how; None samples from `model` as it is.
        keep_hidden: return the hidden states too: what `completion_hidden_states` would compute again.
        on_progress: called with (completed rows, all rows) whenever rows are completed.

    Returns:
        `Samples` with `len(prompt_ids) * num_generations` rows; log-probabilities come from a float32 log-softmax
        (float64 for a float64 model).

    Raises:
        UsageError: an argument out of its range.
        DataError: a prompt that is empty, has ids outside of the vocabulary, leaves too little context, or comes
            to where LongRoPE changes.
        NumericalError: a model gave NaN or infinity.

    Source: contrastive decoding as the closed-form optimum of method section 4, token by token; subtractive decoding
        as derived in docs/theory.md, statement 10.
    """
    draw = Draw(temperature, num_generations, generator)
    sampling = Sampling(
        max_completion_length,
        eos_token_ids,
        pad_token_id,
        batch_size,
        token_budget,
        contrast,
        keep_hidden,
    )
    return sample_each(model, prompt_ids, [draw], sampling, on_progress)[0]


def sample_each(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    draws: Sequence[Draw],
    sampling: Sampling,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Samples]:
    """Several draws of completions of the same prompts, such as at several temperatures; each prompt is read once.

    Args:
        model, prompt_ids, on_progress: as in `sample`.
        draws: what is drawn of each prompt.
        sampling: what all draws share.

    Returns:
        `Samples` of each draw, those that `sample` gives for it alone.

    Raises:
        UsageError, DataError, NumericalError: as in `sample`.
    """
    contrast, steps = sampling.contrast, sampling.max_completion_length
    models = [model] if contrast is None else [model, contrast.model]
    _check_prompts(prompt_ids, models, steps)
    borders = [border for each in models if (border := length_border(each)) is not None]
    _check_borders(prompt_ids, borders, steps)
    prompts = [tuple(prompt) for draw in draws for prompt in prompt_ids for _ in range(draw.num_generations)]
    task = _Task(draws, len(prompt_ids), sampling, on_progress)
    with inference(*models), contextlib.ExitStack() as until_sampled:
        decoders = [_decoder(each, sampling.keep_hidden) for each in models]
        beginning = [] if borders else _beginning(decoders, models, set(prompts))
        if len(prompts) > 1 and steps >= LEAST_STEPS:
            until_sampled.enter_context(prepacked(models))
        if beginning:
            for decoder in decoders:
                decoder.read_beginning(beginning)
        for rows in _batches(
            prompts,
            max_rows=(sampling.batch_size or len(prompts)) if all(d.expands for d in decoders) else 1,
            token_budget=sampling.token_budget,
            steps=steps,
            # the longest row of a batch decides for all whether they lie behind the border
            equal_lengths=bool(borders) or not all(d.pads for d in decoders),
        ):
            batch = RowBatch(
                decoders,
                [prompts[row] for row in rows],
                steps=steps,
                pad_token_id=sampling.pad_token_id,
                begun=len(beginning),
            )
            _complete(batch, rows, task)
    return task.samples()


def _decoder(model: PreTrainedModel, keep_hidden: bool) -> Decoder:
    """The fastest decoder whose logits are the model's own: tried once, on a few tokens.

    Some families count positions from another number than 0, or keep a cache that rows cannot share.
    """
    decoder = Decoder(model, keep_hidden=keep_hidden)

    def find() -> int:
        for way in (_ROWS, _ALONE):
            _restrict(decoder, way)
            if _decodes(decoder, model):
                return way
        return _WITHOUT_CACHE

    _restrict(decoder, _of_model(model, "_densepath_decodes", find))
    return decoder


_HALF_PRECISION = 0.25
"""Nats by which log-probabilities may differ in half precision, weighted by the probabilities: a bound of our own.
Rounding moves them by hundredths, another position by tenths."""
_ROWS, _ALONE, _WITHOUT_CACHE = range(3)
"""Ways to decode: all rows in one cache, each row alone, and each anew at every token."""


def _restrict(decoder: Decoder, way: int) -> None:
    if way != _ROWS:
        decoder.restrict(caches=way == _ALONE)


def _beginning(
    decoders: Sequence[Decoder], models: Sequence[PreTrainedModel], prompts: set[tuple[int, ...]]
) -> list[int]:
    """What all prompts begin with, such as a system turn, where it pays and is right to read it once."""
    beginning = common_beginning(prompts)
    if (len(prompts) - 1) * len(beginning) < LEAST_SAVED_POSITIONS:
        return []
    for decoder, model in zip(decoders, models, strict=True):
        find = functools.partial(_begins, decoder, model)
        if not _of_model(model, "_densepath_begins", find):
            return []
    return beginning


def _begins(decoder: Decoder, model: PreTrainedModel) -> bool:
    return decoder.begins and _decodes(decoder, model, begun=2)


def _of_model(model: PreTrainedModel, question: str, find: Callable[[], int]) -> int:
    """What was found for this model, or for another of its kind."""
    kept = vars(causal_lm(model))  # a compiled model would set it on the plain one inside, which decodes otherwise
    where, known = computed_on(model), kept.get(question)
    if known is None or known[0] != where:
        kept[question] = known = where, once_for_kind(model, question, find)
    found: int = known[1]
    return found


def _decodes(decoder: Decoder, model: PreTrainedModel, begun: int = 0) -> bool:
    """Whether the decoder's logits behind prompts of two lengths, and two tokens later, are those of a plain pass.

    Args:
        decoder: of the model.
        model: whose own pass is the truth.
        begun: tokens that both prompts begin with and the decoder reads apart.
    """
    vocabulary = embedding_rows(model)
    ids = [(5 * k + 1) % vocabulary for k in range(9)]
    prompts = [[*ids[:begun], *ids[:3]], [*ids[:begun], *ids[2 : 7 - begun // 2]]]
    together = decoder.pads and decoder.expands
    try:
        for group in [prompts] if together else [[prompt] for prompt in prompts]:
            decoder.read_beginning(group[0][:begun])
            batch = RowBatch([decoder], group, steps=2, pad_token_id=ids[8], begun=begun)
            rows = [list(prompt) for prompt in group]
            for token in (ids[7], ids[8], None):
                for place, row in enumerate(rows):
                    own = model(input_ids=torch.tensor([row], device=decoder.device), use_cache=False).logits[0, -1]
                    if not _same(batch.logits[0][place], own.to(batch.logits[0].device), model):
                        return False
                if token is not None:
                    batch.step(torch.full((len(rows),), token, device=decoder.device))
                    rows = [[*row, token] for row in rows]
            if together:
                batch.select([1, 0, 1])
    except torch.OutOfMemoryError:
        raise  # it says nothing of the model
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError):
        return False
    return True


def _same(found: Tensor, own: Tensor, model: PreTrainedModel) -> bool:
    """Whether two rows of logits are one distribution up to rounding, NaN included."""
    if not bool(torch.isfinite(own).all()):
        return True  # nothing can be seen of damaged weights: sampling them says where
    found, own = lift(found).log_softmax(-1), lift(own).log_softmax(-1)
    if model.dtype in (torch.float32, torch.float64) and "_original_forward" not in vars(model):
        return bool(torch.allclose(found, own, atol=2e-3, rtol=2e-3))
    return float((own.exp() * (found - own).abs()).nan_to_num().sum(-1).max()) < _HALF_PRECISION


class _Task:
    """What all batches share, and the rows completed so far: draw after draw, each prompt by prompt."""

    def __init__(
        self,
        draws: Sequence[Draw],
        prompts: int,
        sampling: Sampling,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.steps = sampling.max_completion_length
        self.contrast = sampling.contrast
        self.keep_entropies = sampling.keep_entropies
        self._ends = frozenset(int(token) for token in sampling.eos_token_ids)
        self._counts = [prompts * draw.num_generations for draw in draws]
        counted = list(zip(draws, self._counts, strict=True))
        self._rows = sum(self._counts)
        self._on_progress = on_progress
        self._completed = 0
        self.temperatures = [draw.temperature for draw, count in counted for _ in range(count)]
        self.uniforms = torch.cat(
            [
                row_uniforms(count, self.steps, draw.generator)
                if draw.temperature
                else torch.zeros(count, self.steps, dtype=torch.float64)
                for draw, count in counted
            ]
        )
        self._ids: list[list[int]] = [[] for _ in range(self._rows)]
        self._truncated = [True] * self._rows
        # logprobs, entropies, and log-probabilities under each of two models: by row
        self._values: list[list[tuple[float, ...]]] = [[] for _ in range(self._rows)]
        self._hidden: list[list[Tensor]] = [[] for _ in range(self._rows)]

    def append(self, row: int, token: int, values: tuple[float, ...], hidden: Tensor | None) -> bool:
        """Record one token with its `_told` values; whether the row goes on."""
        if not math.isfinite(values[0]):
            raise NumericalError(
                f"row {row}: NaN or infinite logits at completion token {len(self._ids[row])}: "
                "the weights are damaged or overflow in their dtype"
            )
        self._ids[row].append(token)
        self._values[row].append(values)
        if hidden is not None:
            self._hidden[row].append(hidden)
        self._truncated[row] = token not in self._ends
        return self._truncated[row] and len(self._ids[row]) < self.steps

    def report(self, completed: int) -> None:
        """Count rows that were completed and tell the caller."""
        self._completed += completed
        if completed and self._on_progress is not None:
            self._on_progress(self._completed, self._rows)

    def samples(self) -> list[Samples]:
        """Of each draw, once all rows are complete."""
        whole, found, start = all(map(len, self._hidden)), [], 0
        for count in self._counts:
            rows = range(start, start + count)
            start += count
            told: list[list[list[float]]] = [list(map(list, zip(*self._values[row], strict=True))) for row in rows]
            found.append(
                Samples(
                    [self._ids[row] for row in rows],
                    [values[0] for values in told],
                    [self._truncated[row] for row in rows],
                    [torch.stack(self._hidden[row]) for row in rows] if whole else [],
                    [values[1] for values in told] if self.keep_entropies else [],
                    [] if self.contrast is None else [(values[-2], values[-1]) for values in told],
                )
            )
        return found


def _complete(batch: RowBatch, rows: list[int], task: _Task) -> None:
    """Decode the rows of one batch to their ends; `rows[i]` is the row at place i of the batch."""
    going = [True] * len(rows)
    log_ratios: Tensor | None = None
    for step in range(task.steps):
        tokens, told, log_ratios = _next(batch.logits, rows, step, log_ratios, task)
        before = sum(going)
        for place, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            if going[place]:
                hidden = None if batch.hidden is None else batch.hidden[place]
                going[place] = task.append(row, token, told[place], hidden)
        left = sum(going)
        task.report(before - left)
        if not left:
            return
        if len(rows) - left >= DROP_FRACTION * len(rows) and left < len(rows):
            keep = [place for place, goes_on in enumerate(going) if goes_on]
            batch.select(keep)
            log_ratios = None if log_ratios is None else log_ratios[keep]
            tokens, rows, going = tokens[keep], [rows[place] for place in keep], [True] * left
        batch.step(tokens)


def _next(
    logits: list[Tensor], rows: list[int], step: int, log_ratios: Tensor | None, task: _Task
) -> tuple[Tensor, list[tuple[float, ...]], Tensor | None]:
    """(rows,) the next tokens, what is told of each, and (rows,) the log-ratios with them, of subtractive decoding.

    A few rows at a time, so that what is made of their logits stays in a CPU's cache.
    """
    tokens, told, ratios = [], [], []
    for part in row_parts(logits[0]):
        own = [each[part] for each in logits]
        before = None if log_ratios is None else log_ratios[part]
        scores, token_ratios = _scores(own, task.contrast, before)
        temperatures = [task.temperatures[row] for row in rows[part]]
        drawn, logprobs = _drawn(scores, temperatures, task.uniforms[rows[part], step])
        tokens.append(drawn)
        told += _told(drawn, logprobs, own, task)
        if token_ratios is not None:
            ratios.append(_of(drawn, token_ratios) + (0 if before is None else before))
    return torch.cat(tokens), told, torch.cat(ratios) if ratios else None


def _drawn(scores: Tensor, temperatures: list[float], uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(rows,) the next tokens, and (rows, vocabulary) log-probabilities at the rows' temperatures, at 1 where it is 0.

    Args:
        scores: (rows, vocabulary) logits.
        temperatures: of each row.
        uniforms: (rows,) float64 in [0, 1), not read where the temperature is 0.
    """
    divided = scores
    if not set(temperatures) <= {0, 1}:
        divided = scores / scores.new_tensor([temperature or 1 for temperature in temperatures]).unsqueeze(1)
    logprobs = torch.log_softmax(divided, dim=-1)
    uniforms = uniforms.to(scores.device)
    if all(temperatures):
        return inverse_cdf(logprobs, uniforms), logprobs
    tokens = scores.argmax(dim=-1)
    if any(temperatures):
        sampled = [place for place, temperature in enumerate(temperatures) if temperature]
        tokens[sampled] = inverse_cdf(logprobs[sampled], uniforms[sampled])
    return tokens, logprobs


def _told(tokens: Tensor, logprobs: Tensor, logits: list[Tensor], task: _Task) -> list[tuple[float, ...]]:
    """What is known of each row's token: its log-probability; entropy, if it is kept; the models' own, if two."""
    columns = [_of(tokens, logprobs)]
    if task.keep_entropies:
        columns.append(entropy_of_logprobs(logprobs))
    if task.contrast is not None:
        columns += [_of(tokens, lift(each)) - lift(each).logsumexp(dim=-1) for each in logits]
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _of(tokens: Tensor, values: Tensor) -> Tensor:
    """(rows,) the values, (rows, vocabulary), of one token of each row."""
    return values.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def _scores(
    logits: list[Tensor], contrast: Contrast | None, log_ratios: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Logits to sample from, (rows, vocabulary), float32 or float64; and what each token adds to the row's log-ratio.

    The latter, of the same shape, for subtractive decoding alone; `log_ratios`, (rows,), is None at the first token.
    """
    if contrast is None:
        return lift(logits[0]), None
    ids = min(each.shape[-1] for each in logits)  # an id that one of the two lacks has no contrast: probability 0
    first, second = (each[..., :ids] for each in logits)
    if contrast.kind is ContrastKind.CONTRASTIVE:
        return contrastive_logits(first, second, contrast.strength), None
    first, second = (lift(each).log_softmax(dim=-1) for each in (first, second))
    so_far = first.new_zeros(len(first)) if log_ratios is None else log_ratios
    return subtractive_logprobs(first, second, so_far, contrast.strength, FLOOR), first - second


def _batches(
    prompts: list[tuple[int, ...]], *, max_rows: int, token_budget: int, steps: int, equal_lengths: bool
) -> Iterator[list[int]]:
    """Rows to decode together: similar lengths, equal prompts side by side, the longest first."""
    batch: list[int] = []
    longest = 0
    for row in sorted(range(len(prompts)), key=lambda row: (-len(prompts[row]), prompts[row], row)):
        length = len(prompts[row])
        full = len(batch) >= max_rows or (len(batch) + 1) * (longest + steps) > token_budget
        if batch and (full or (equal_lengths and length != longest)):
            yield batch
            batch = []
        if not batch:
            longest = length
        batch.append(row)
    if batch:
        yield batch


def _check_prompts(prompt_ids: Sequence[Sequence[int]], models: Sequence[PreTrainedModel], steps: int) -> None:
    """Refuse prompts that the models cannot read, naming the row."""
    context = min(context_length(model) for model in models)
    vocabulary = min(int(model.get_input_embeddings().weight.shape[0]) for model in models)
    for row, prompt in enumerate(prompt_ids):
        if len(prompt) == 0:
            raise DataError(f"prompt {row} is empty: a model needs at least one token, such as BOS, to start from")
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise DataError(
                f"prompt {row} has token id {max(prompt)}, outside of the {vocabulary} of the model: "
                "was it tokenised for another model?"
            )
        check_context(len(prompt), context, f"prompt {row}", max_completion_length=steps)


def _check_borders(prompt_ids: Sequence[Sequence[int]], borders: Sequence[int], steps: int) -> None:
    """Refuse completions that would cross a `length_border`: what was sampled before it has no one probability."""
    for row, prompt in enumerate(prompt_ids):
        for border in borders:
            if len(prompt) <= border < len(prompt) + steps:
                raise DataError(
                    f"prompt {row} has {len(prompt)} tokens; with max_completion_length={steps} it may cross "
                    f"{border}, where the model's LongRoPE changes the frequencies of all tokens: shorten the prompt, "
                    "lower max_completion_length, or leave such rows out"
                )


def inverse_cdf(logprobs: Tensor, uniforms: Tensor) -> Tensor:
    """The token whose interval of the cumulative distribution holds the uniform number.

    One uniform number a row instead of one for each entry of the vocabulary, as `torch.multinomial` and Gumbel noise
    draw. The sum is taken in float64: in float32 it is off by ~1e-4 over 50,000 tokens, as much as a rare token.

    Args:
        logprobs: (rows, vocabulary) float, normalised up to rounding.
        uniforms: (rows,) float64 in [0, 1).

    Returns:
        (rows,) int64; never a token of probability zero.

    >>> inverse_cdf(torch.tensor([[0.25, 0.0, 0.75]]).log(), torch.tensor([0.25], dtype=torch.float64))
    tensor([2])
    """
    cumulative = torch.cumsum(logprobs.exp(), dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = torch.minimum(uniforms.unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    token = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    return token.clamp(max=logprobs.shape[-1] - 1)  # beyond the end for NaN alone


def row_uniforms(rows: int, steps: int, generator: torch.Generator | None) -> Tensor:
    """(rows, steps) float64 in [0, 1): row i's numbers depend on the generator's state and i, on nothing else."""
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**63 - 1, (rows,), generator=generator, device=device).tolist()
    uniforms = torch.empty(rows, steps, dtype=torch.float64)
    stream = torch.Generator()
    for row, seed in enumerate(seeds):
        torch.rand(steps, dtype=torch.float64, generator=stream.manual_seed(seed), out=uniforms[row])
    return uniforms
