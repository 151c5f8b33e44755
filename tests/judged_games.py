"""Games for tests: by verdicts, by preferences, and drawn with planted effects."""

from __future__ import annotations

import numpy as np

from densepath.records.judging import Game, Judgement, preference_of


def judgement(value) -> Judgement:
    """Of a verdict, a preference, or None for an invalid one."""
    if value is None:
        return Judgement(invalid="no verdict")
    if isinstance(value, str):
        return Judgement(preference=preference_of(value), verdict=value)
    return Judgement(preference=float(value))


def game(question, said, *, switched=False, repeat=0, turn=1, model="m", baseline="b") -> Game:
    """A game whose judgement is that of the answers as they were shown."""
    return Game(question, turn, model, baseline, switched, repeat, judgement(said))


def grade(question, value, *, turn=1, repeat=0, model="m") -> Game:
    said = Judgement(invalid="no grade") if value is None else Judgement(grade=value)
    return Game(question, turn, model, None, False, repeat, said)


def both_orders(preferences, *, model="m", repeat=0, first_place=0.0, baseline="b") -> list[Game]:
    """Games of preferences for the model, (prompts,), of a judge that adds so much for the first place."""
    found = []
    for index, value in enumerate(preferences):
        one, other = np.clip([value + first_place, 1 - value + first_place], 0, 1)
        found.append(game(f"q{index}", one, repeat=repeat, model=model, baseline=baseline))
        found.append(game(f"q{index}", other, switched=True, repeat=repeat, model=model, baseline=baseline))
    return found
