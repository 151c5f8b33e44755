"""Replies that were paid for: a power cut right after one was kept loses none."""

from __future__ import annotations

import os

import pytest
from tests.power import cut, record

from densepath.io import make_folder
from densepath.judging.cache import Asked, ReplyCache
from densepath.judging.ledger import LEDGER, Ledger, Paid, this_process
from densepath.judging.verdicts import Reply


@pytest.mark.parametrize("made_by_another", [False, True], ids=["new folder", "folder of a process that was killed"])
@pytest.mark.parametrize("removed_come_back", [False, True], ids=["gone", "removed names come back"])
def test_a_reply_is_on_disk_when_put_returns(tmp_path, monkeypatch, made_by_another, removed_come_back):
    cache = ReplyCache(tmp_path / "judged/judge_cache")
    asked = [Asked("http://e/v1", "m", ({"role": "user", "content": f"{n}"},), {}, 0) for n in range(3)]
    if made_by_another:
        cache.path(asked[0]).parent.mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", os.fsync)
    journal, shadow = tmp_path / "journal", tmp_path / "shadow"
    record(journal, shadow)
    make_folder(cache.folder.parent)
    for number, each in enumerate(asked):
        with Ledger(cache.folder).open() as entry:
            entry.paid = Paid(calls=number + 1)
        cache.put(each, Reply(f"[[{number}]]", None, None, "stop"))
    cut(cache.folder.parent, journal, shadow, removed_come_back=removed_come_back)
    assert [cache.get(each).text for each in asked] == ["[[0]]", "[[1]]", "[[2]]"]
    assert (cache.folder / LEDGER).exists()
    with Ledger(cache.folder).open() as entry:
        assert entry.paid.calls == 3


def test_what_a_process_held_is_booked_though_the_next_one_has_its_number():
    """In a container every process may be number 7."""
    mine, before = f"{this_process()}:1", f"{os.getpid()}@0:1"
    found = Paid(cost=1.0, held={mine: 0.25, before: 0.5}).without_dead
    assert found.cost == 1.5
    assert found.held == {mine: 0.25}
