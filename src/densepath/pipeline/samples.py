"""The first test prompts of a run with each arm's completion, token by token: what its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from densepath.data.rows import is_conversational, prompt_of, turn_text
from densepath.data.spans import read_tokens
from densepath.io import read_jsonl
from densepath.pipeline.grid import Grid
from densepath.pipeline.recipe import MethodPlan, Setting
from densepath.records.arm import SFT
from densepath.records.completion import Sample, ScoredCompletion, completion_of


def grid_samples(grid: Grid, setting: Setting, seed: int) -> list[dict[str, Any]]:
    """Each arm's completions of the first test prompts at the first temperature, by prompt."""
    sft = grid.sft(setting, seed)
    tokenizer = sft.tokenizer()
    # the page compares SFT with what was made of it: no other control is laid out token by token
    shown = [plan for plan in setting.methods.values() if plan.name == SFT or not plan.arm.control]
    answers = {plan.name: _completions(grid, setting, plan, seed) for plan in shown}
    found = []
    for index, row in enumerate(sft.rows("test")[: setting.arguments.num_report_samples]):
        answer, category = row.get("answer"), row.get("family") or row.get("category")
        sample = Sample(
            id=str(row.get("id", index)),
            prompt=_prompt_text(prompt_of(dict(row))),
            answer=None if answer is None else str(answer),
            category=None if category is None else str(category),
            completions={plan.name: _scored(answers[plan.name][index], tokenizer) for plan in shown},
        )
        found.append(sample.to_json())
    return found


def _completions(grid: Grid, setting: Setting, plan: MethodPlan, seed: int) -> Sequence[Mapping[str, Any]]:
    (variant,) = plan.variants
    job = grid.job(setting, plan, variant, seed, ("test",))
    path = job.evaluation.path(job.folder, "test", job.evaluation.first)
    return read_jsonl(path.with_suffix(".jsonl"))


def _scored(record: Mapping[str, Any], tokenizer: Any) -> ScoredCompletion:
    return completion_of(
        read_tokens(record["completion_ids"], tokenizer),
        record["rewards"],
        sft_logprobs=record["sft_logprobs"],
        metric=record["metric"],
        truncated=record["truncated"],
    )


def _prompt_text(prompt: str | list[dict[str, Any]]) -> str:
    if not is_conversational(prompt):
        return str(prompt)
    turns = [turn for turn in prompt if isinstance(turn, dict)]
    if len(turns) == 1:
        return turn_text(turns[0])
    return "\n".join(f"{turn['role']}: {turn_text(turn)}" for turn in turns if turn_text(turn))
