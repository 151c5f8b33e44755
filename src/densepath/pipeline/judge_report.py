"""What the page of `densepath judge` shows beside the figures: lengths, and the most decisive pairs, coloured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from densepath.config.judging import JudgeCommandArguments
from densepath.config.options import check_reference
from densepath.errors import DataError, ModelError
from densepath.judging.games import Match, grade_of_answer, preference_of_pair
from densepath.pipeline.contestants import Contest
from densepath.records.benchmark import BenchmarkRows
from densepath.records.completion import ScoredCompletion, completion_of, prompt_text
from densepath.records.judge_report import JudgeReport, ShownAnswer, ShownPair
from densepath.records.judged import Judged
from densepath.records.judging import Game, Spending
from densepath.rewards.dense import DenseReward
from densepath.scoring.shard import is_saved_reward


def judge_report(
    arguments: JudgeCommandArguments,
    figures: Judged,
    found: BenchmarkRows,
    entered: Contest,
    matches: Sequence[Match],
    games: Sequence[Game],
) -> JudgeReport:
    """The record that the page is made of; what judging took is left to the caller.

    Args:
        arguments: of the command: how many pairs are shown, and the reward that colours them.
        figures: what the games come to.
        found: the benchmark.
        entered: the models and baselines.
        matches: what was judged.
        games: how.
    """
    played: dict[tuple[str, int, str, str | None], list[Game]] = {}
    for game in games:
        played.setdefault((game.question, game.turn, game.model, game.baseline), []).append(game)
    pairs = [(match, played[_key(match)]) for match in matches]
    reward = None if arguments.model_name_or_path is None or not arguments.num_shown else _reward(arguments)
    shown = [each for who in entered.models for each in _decisive(who.name, pairs, arguments.num_shown)]
    return JudgeReport(
        judged=figures,
        source=found.source,
        models={who.name: who.source for who in entered.everyone},
        games=len(games),
        invalid=sum(game.judgement.invalid is not None for game in games),
        spent=Spending(),
        lengths={who.name: tuple(_lengths(who.name, pairs)) for who in entered.models if entered.baselines},
        pairs=tuple(_shown(match, of, found, reward) for match, of in shown),
    )


def check_colours(arguments: JudgeCommandArguments) -> None:
    """Refuse a reward that lacks its reference, before anything is asked.

    Raises:
        ConfigError: the reading needs one.
    """
    name = arguments.model_name_or_path
    if name is not None and not is_saved_reward(name):
        check_reference(arguments.dense_reward, arguments.ref_model_name_or_path)


def _key(match: Match) -> tuple[str, int, str, str | None]:
    return match.question, len(match.request.follow_ups) + 1, match.model, match.baseline


def _value(match: Match, games: Sequence[Game]) -> float | None:
    """The preference for the model, or the grade of its answer."""
    return grade_of_answer(games) if match.baseline is None else preference_of_pair(games)


def _decisive(model: str, pairs: Sequence[tuple[Match, list[Game]]], count: int) -> list[tuple[Match, list[Game]]]:
    """A model's pairs of the highest and the lowest preference, in turn; of equal ones the earlier first."""
    known = [(value, each) for each in pairs if each[0].model == model and (value := _value(*each)) is not None]
    best = [each for _, each in sorted(known, key=lambda found: -found[0])]
    worst = [each for _, each in sorted(known, key=lambda found: found[0])]
    turned = [each for two in zip(best, worst, strict=True) for each in two]
    distinct = {id(each): each for each in turned}
    return list(distinct.values())[:count]


def _lengths(model: str, pairs: Sequence[tuple[Match, list[Game]]]) -> list[tuple[float, float]]:
    """(characters of the model's answer less the baseline's, preference for it) of each pair with a verdict."""
    found = []
    for match, games in pairs:
        value = _value(match, games) if match.model == model and match.baseline is not None else None
        if value is not None:
            own, other = (len(texts[-1]) for texts in match.request.answers)
            found.append((float(own - other), value))
    return found


def _shown(match: Match, games: Sequence[Game], found: BenchmarkRows, reward: DenseReward | None) -> ShownPair:
    question = next(each for each in found.questions if each.id == match.question)
    names = [match.model] if match.baseline is None else [match.model, match.baseline]
    conversations = [match.request.conversation(index) for index in range(len(names))]
    value = _value(match, games)
    return ShownPair(
        question=match.question,
        row=question.row,
        category=question.category,
        turn=len(match.request.follow_ups) + 1,
        prompt=prompt_text(conversations[0][:-1]) or "",
        answers=tuple(_answer(name, turns, reward) for name, turns in zip(names, conversations, strict=True)),
        preference=None if match.baseline is None else value,
        grade=value if match.baseline is None else None,
        replies=tuple(dict.fromkeys(game.judgement.reply for game in games if game.judgement.reply.strip())),
    )


def _answer(name: str, turns: Sequence[Mapping[str, Any]], reward: DenseReward | None) -> ShownAnswer:
    """The last turn of a conversation, with its tokens coloured where the reward can read them."""
    *prompt, last = turns
    text = str(last["content"])
    if reward is None:
        return ShownAnswer(name, text)
    try:
        return ShownAnswer(name, text, _without_end(reward.score([prompt], [[last]]).completion(0)))
    except (DataError, ModelError):  # an empty answer, or more tokens than its context holds
        return ShownAnswer(name, text)


def _without_end(scored: ScoredCompletion) -> ScoredCompletion:
    """The answer without the EOS that scoring adds: a file does not say whether the model ended there."""
    read = (scored.text, scored.token_ids[:-1], scored.tokens[:-1], scored.offsets[:-1])
    return completion_of(read, scored.rewards[:-1])


def _reward(arguments: JudgeCommandArguments) -> DenseReward:
    """The reward that colours the answers."""
    name = str(arguments.model_name_or_path)
    places: dict[str, Any] = {
        "dtype": arguments.dtype,
        "device": arguments.device,
        **arguments.tokenizer_options(),
        "token_budget": arguments.token_budget,
    }
    if is_saved_reward(name):
        return DenseReward.from_pretrained(name, **places)
    return DenseReward.from_models(name, arguments.ref_model_name_or_path, kind=arguments.dense_reward, **places)
