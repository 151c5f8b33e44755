"""Scores, samples and training passes of every causal family equal the family's own forward pass, or are refused."""

from __future__ import annotations

import traceback
import warnings
from typing import Any, NamedTuple

import pytest
import torch
from tests.families import FAMILIES, build, scales
from trl.trainer.utils import add_fused_lm_head

from densepath.errors import DensepathError
from densepath.models.load import disable_dropout
from densepath.models.packed_forward import add_packed_forward
from densepath.models.sampling import sample
from densepath.models.scoring import score_completions

PROMPTS = [[5, 6, 7, 8], [5, 6, 7, 8], [9, 10], [5, 6, 11, 12, 13, 14, 15, 16], [40]]
COMPLETIONS = [[20, 21, 22, 3], [23, 3], [24, 25, 26, 27, 28, 29, 30, 31], [32], [2, 33, 34]]
TOLERANCE = 1e-5
DECODED = 1e-4
"""A step of a recurrent layer sums in another order than a pass over the sequence: 5e-5 nats in float32."""
VERBOSE = False


class Row(NamedTuple):
    """One line of the table: the largest differences from the family's own forward pass, nats."""

    family: str
    variant: str
    verdict: str
    scores: float = float("nan")
    samples: float = float("nan")
    training: float = float("nan")


def own_logprobs(model: Any, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """One sequence alone, without padding, cache or positions: (completion tokens,) float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
    rows = logits[len(prompt) - 1 : len(prompt) + len(completion) - 1].log_softmax(-1)
    return rows.gather(-1, torch.tensor(completion).unsqueeze(-1)).squeeze(-1)


def farthest(found: list[Any], expected: list[torch.Tensor]) -> float:
    return max(
        float((torch.as_tensor(a).double() - b).abs().max()) for a, b in zip(found, expected, strict=True) if len(b)
    )


def trained(model: Any) -> list[torch.Tensor]:
    """Log-probabilities of the training pass, of rows padded on the left as GRPO's are."""
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    add_packed_forward(model)
    width = max(len(p) + len(c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True))
    ids, mask = torch.full((len(PROMPTS), width), 2), torch.zeros(len(PROMPTS), width, dtype=torch.long)
    labels = torch.full((len(PROMPTS), width), -100)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        length = len(prompt) + len(completion)
        ids[row, -length:], mask[row, -length:] = torch.tensor(prompt + completion), 1
        labels[row, -len(completion) :] = torch.tensor(completion)
    disable_dropout(model)
    model.train()
    output = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    output.loss.backward()
    return [output.log_probs[row, -len(ids) :].detach() for row, ids in enumerate(COMPLETIONS)]


def compared(family: str, scaled: bool) -> Row:
    """The family's row of the table."""
    variant = "scaled" if scaled else "default"
    try:
        model = build(family, scaled=scaled)
        expected = [own_logprobs(model, p, c) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)]
    except Exception as error:
        return Row(family, variant, f"cannot be built: {type(error).__name__}: {' '.join(str(error).split())[:90]}")
    try:
        scores = farthest(score_completions(model, PROMPTS, COMPLETIONS).logprobs, expected)
        generator = torch.Generator().manual_seed(0)
        drawn = sample(model, PROMPTS, max_completion_length=6, eos_token_ids=[2], generator=generator)
        own = [own_logprobs(model, p, c) for p, c in zip(PROMPTS, drawn.completion_ids, strict=True)]
        samples = farthest([torch.tensor(row) for row in drawn.logprobs], own)
        training = farthest(trained(model), expected)
    except DensepathError as error:
        return Row(family, variant, f"refused: {' '.join(str(error).split())[:110]}")
    except Exception as error:
        if VERBOSE:
            traceback.print_exc()
        return Row(family, variant, f"BROKEN: {type(error).__name__}: {' '.join(str(error).split())[:110]}")
    equal = max(scores, training) <= TOLERANCE and samples <= DECODED
    return Row(family, variant, "equal" if equal else "DIFFERENT", scores, samples, training)


def rows_of(family: str) -> list[Row]:
    """The row with default scales, and the one with others where the family has any."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [compared(family, scaled=False)]
        if not rows[0].verdict.startswith("cannot") and scales(build(family).config.get_text_config()):
            rows.append(compared(family, scaled=True))
    return rows


@pytest.mark.parametrize(
    "family", ["llama", "gemma2", "falcon_h1", "cohere", "granite", "gpt2", "mamba", "mixtral", "minicpm3", "roberta"]
)
def test_representative_families_equal_their_own_forward_pass(family):
    for row in rows_of(family):
        assert row.verdict == "equal", row


@pytest.mark.slow
def test_every_family_equals_its_own_forward_pass_or_is_refused(capsys):
    rows = [row for family in FAMILIES for row in rows_of(family)]
    with capsys.disabled():
        print(f"\n{'family':28s} {'variant':8s} {'scores':>8s} {'samples':>8s} {'training':>8s}  verdict")
        for row in rows:
            print(f"{row[0]:28s} {row[1]:8s} {row[3]:8.1e} {row[4]:8.1e} {row[5]:8.1e}  {row[2]}")
    found = [row for row in rows if row.verdict.startswith(("DIFFERENT", "BROKEN"))]
    assert not found
    assert sum(row.verdict == "equal" for row in rows) > len(FAMILIES) / 2
