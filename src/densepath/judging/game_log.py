"""Judged games on disk, one JSON object a line, each there before the next is judged; a call after a kill goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from densepath.data.rows import canonical_json
from densepath.errors import DamagedFileError, DataError
from densepath.io import read_log, write_jsonl_atomic, writing
from densepath.judging.games import PlannedGame, play
from densepath.judging.protocol import Judge
from densepath.records.codec import from_json, to_json
from densepath.records.judging import Game

_REMEDY = "remove it and run the same command again; replies that were paid for are kept apart"


class GameLog:
    """Games by what decides them: the judge, the answers as they are shown, and which of the repeats it is.

    Args:
        path: the file; made where it is not there.

    Raises:
        DamagedFileError: a line that holds no game.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._games: dict[str, Game] = {}
        for number, line in enumerate(read_log(path, _REMEDY), start=1):
            try:
                if line != _line(line["key"], line["game"]):
                    raise DataError("it is not what was written")
                self._games[str(line["key"])] = from_json(Game, line["game"])
            except (DataError, KeyError, TypeError) as error:
                raise DamagedFileError(f"{path}, line {number}: not a judged game ({error}); {_REMEDY}") from None

    def missing(self, identity: Mapping[str, Any], planned: Sequence[PlannedGame]) -> list[PlannedGame]:
        """Those of the games that are not there, or in which the judge said nothing."""
        return [game for game in planned if self._valid(identity, game) is None]

    def play(
        self,
        judge: Judge,
        identity: Mapping[str, Any],
        planned: Sequence[PlannedGame],
        *,
        max_invalid: float,
        on_game: Callable[[], object],
    ) -> list[Game]:
        """All games in their order; those that are missing are judged, and each is written as soon as it is known.

        Args:
            judge: who judges.
            identity: all that decides what the judge says, beside the request.
            planned: the games.
            max_invalid: share of all of them that may be invalid.
            on_game: called after each game that was judged.

        Raises:
            JudgeError: see `judging.games.play`; what was judged until then is kept.
            StorageError: a game cannot be written.
        """
        todo = self.missing(identity, planned)
        write_jsonl_atomic(self.path, [_line(key, to_json(game)) for key, game in self._games.items()])
        with self.path.open("a", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            played = play(judge, todo, max_invalid=max_invalid, of=len(planned))
            for plan, game in zip(todo, played, strict=True):
                key = _key(identity, plan)
                self._games[key] = game
                line = json.dumps(_line(key, to_json(game)), ensure_ascii=False, allow_nan=False)
                with writing(self.path):
                    file.write(line + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                on_game()
        return [self._games[_key(identity, plan)] for plan in planned]

    def _valid(self, identity: Mapping[str, Any], planned: PlannedGame) -> Game | None:
        found = self._games.get(_key(identity, planned))
        return None if found is None or found.judgement.invalid is not None else found


def _line(key: str, game: Any) -> dict[str, Any]:
    """What the file holds of a game."""
    return {"key": key, "game": game, "sha256": _sha256(canonical_json([key, game]))}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()


def _key(identity: Mapping[str, Any], planned: PlannedGame) -> str:
    match = planned.match
    whose = {"question": match.question, "model": match.model, "baseline": match.baseline}
    request = asdict(planned.request)
    if not planned.request.plain:
        del request["plain"]  # as before there was such a field: games that were judged then are found
    return _sha256(canonical_json([identity, whose, planned.switched, request]))
