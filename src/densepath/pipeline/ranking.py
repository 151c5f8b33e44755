"""`densepath rank`: the completions of each prompt by falling reward, and what the best ones are like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from densepath.config.reward import RankArguments
from densepath.data.outputs import check_outputs
from densepath.data.rows import is_conversational, template_columns, turn_text
from densepath.data.sources import load_rows
from densepath.errors import DataError
from densepath.evals.ranking import CompletionGroup, Ranking, group_completions, rank_completions
from densepath.evals.verifiers import get_verifier, verdict_on
from densepath.io import write_jsonl_atomic
from densepath.pipeline.reward_eval import load_dense_reward, pair_inputs
from densepath.progress import StageProgress
from densepath.records.estimates import Difference, Verdict
from densepath.stats.comparisons import paired_difference
from densepath.stats.intervals import mean_interval, metric_interval
from densepath.terminal import Console, say


def run_rank_command(arguments: RankArguments, console: Console) -> Path:
    """Write one JSON object a prompt, and say how long, and how often right, the best completions are.

    Raises:
        DensepathError: data, model or configuration that cannot be used.
    """
    source = arguments.dataset_name
    outputs = {name: getattr(arguments, name) for name in ("output_file", "best_file", "pairs_file")}
    check_outputs(outputs, pair_inputs(arguments))
    groups = group_completions(load_rows(source, arguments.dataset_train_split, None, limit=None, seed=None), source)
    groups = groups[: arguments.max_samples]
    verdicts = None if arguments.verifier is None else _verdicts(arguments.verifier, groups, source)
    reward = load_dense_reward(arguments, console)
    total = sum(len(group.completions) for group in groups)
    with StageProgress(console, "rank", total * reward.passes, "completion") as progress:
        rankings = rank_completions(
            reward,
            [group.prompt for group in groups],
            [group.completions for group in groups],
            aggregation=arguments.aggregation,
            on_progress=lambda count: progress.advance(count),
            places=[f"{source}, row {group.rows[0]}" for group in groups],
            chat_template_kwargs=[group.template_arguments for group in groups],
        )
    path = Path(arguments.output_file)
    write_jsonl_atomic(path, [_record(group, ranking) for group, ranking in zip(groups, rankings, strict=True)])
    say(console, f"{len(groups)} prompts, {total} completions, ranked by the {arguments.aggregation} of the reward")
    for line in [*_lengths(rankings), *([] if verdicts is None else _shares_right(verdicts, rankings))]:
        say(console, line)
    say(console, f"ranking: {path.resolve()}")
    ranked = list(zip(groups, rankings, strict=True))
    if arguments.best_file is not None:
        best = [{**_asked(group), "completion": group.completions[ranking.order[0]]} for group, ranking in ranked]
        write_jsonl_atomic(Path(arguments.best_file), best)
        say(console, f"best: {len(best)} completions, {Path(arguments.best_file).resolve()}")
    if arguments.pairs_file is not None:
        _write_pairs(Path(arguments.pairs_file), ranked, console)
    return path


def _asked(group: CompletionGroup) -> dict[str, Any]:
    """What was asked, as rows of training data hold it."""
    name = {} if group.row.get("id") is None else {"id": group.row["id"]}
    return {**name, "prompt": group.prompt, **template_columns(group.row)}


def _write_pairs(path: Path, ranked: Sequence[tuple[CompletionGroup, Ranking]], console: Console) -> None:
    """Write the best and the worst completion of each prompt where the reward tells two apart.

    Raises:
        DataError: it does so of no prompt.
    """
    pairs = []
    for group, ranking in ranked:
        best, worst = ranking.order[0], ranking.order[-1]
        if ranking.scores[best] > ranking.scores[worst]:
            chosen, rejected = group.completions[best], group.completions[worst]
            pairs.append({**_asked(group), "chosen": chosen, "rejected": rejected})
    if not pairs:
        raise DataError("no prompt has two completions that the reward tells apart: there is no pair to write")
    write_jsonl_atomic(path, pairs)
    left_out = f" ({len(ranked) - len(pairs)} prompts left out: one completion, or equal ones)"
    say(console, f"pairs: {len(pairs)}{left_out if len(pairs) < len(ranked) else ''}, {path.resolve()}")


def _record(group: CompletionGroup, ranking: Ranking) -> dict[str, Any]:
    return {
        "id": group.row.get("id"),
        "rows": group.rows if "completion" in group.row else group.rows[:1],
        **ranking.as_dict(),
        "best": group.completions[ranking.order[0]],
    }


def _lengths(rankings: Sequence[Ranking]) -> list[str]:
    """Whether the ranking is one by length in disguise."""
    several = [ranking for ranking in rankings if len(ranking.order) > 1]
    if not several:
        return ["every prompt has one completion: there is nothing to choose"]
    best = [float(r.num_tokens[r.order[0]]) for r in several]
    rest = [(sum(r.num_tokens) - own) / (len(r.num_tokens) - 1) for r, own in zip(several, best, strict=True)]
    found = paired_difference(best, rest)
    verdict = found.verdict
    words = {Verdict.BETTER: "longer", Verdict.WORSE: "shorter"}.get(verdict, "not shown to be longer or shorter")
    return [
        f"length: the best completions are {words} than the rest: {sum(best) / len(best):.1f} tokens against "
        f"{sum(rest) / len(rest):.1f} on average, difference {_difference(found, 1)}"
    ]


def _difference(found: Difference, digits: int) -> str:
    """A mean with its interval; and the p-value where that calls a tie what the interval does not."""
    value = found.interval
    mean, low, high = (f"{number:+.{digits}f}" for number in (value.mean, value.low, value.high))
    alone = found.verdict is Verdict.TIE and not value.low <= 0 <= value.high
    return f"{mean} [{low}, {high}]" + (f", p = {found.p:.2g} for {value.n} prompts" if alone else "")


def _verdicts(name: str, groups: Sequence[CompletionGroup], source: str) -> list[list[float]]:
    verifier = get_verifier(name)
    found = []
    for group in groups:
        try:
            found.append([verdict_on(verifier, _text(each), group.row) for each in group.completions])
        except DataError as error:
            raise DataError(f"{source}, row {group.rows[0]}: {error}") from error
    return found


def _text(completion: Any) -> str:
    return "\n".join(map(turn_text, completion)) if is_conversational(completion) else str(completion)


def _shares_right(verdicts: Sequence[Sequence[float]], rankings: Sequence[Ranking]) -> list[str]:
    """The verifier's view: the best one, any one at random, and the best there was."""
    best = [values[ranking.order[0]] for values, ranking in zip(verdicts, rankings, strict=True)]
    mean = [sum(values) / len(values) for values in verdicts]
    found = paired_difference(best, mean)
    chosen, guessed = metric_interval(best), mean_interval(mean)
    return [
        f"right: {chosen.mean:.3f} [{chosen.low:.3f}, {chosen.high:.3f}] of the best, {guessed.mean:.3f} of all, "
        f"{sum(map(max, verdicts)) / len(verdicts):.3f} if one always chose well",
        f"best less all: {_difference(found, 3)}: {found.verdict.value}",
    ]
