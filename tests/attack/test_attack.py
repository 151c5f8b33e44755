"""`make attack` in small: each attack is made once, and what it counts by tells what it should."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.attack.attack import ATTACKS
from tests.attack.damage import STATES, left, outcome_of_damage
from tests.attack.disks import may_mount
from tests.attack.network import is_whole
from tests.attack.place import COMMANDS, REPORT, Place
from tests.attack.words import flags, means_nothing, outcome_of

COUNTS = {"rows": 40, "HTTP requests": 40, "clients at once": 4, "soak, seconds": 1, "command lines": 6}
"""Times that an attack is made here; of what is not named, once."""
LONG = ("full disks", "power cuts, of a disk")
QUICK = "sft"
"""The command that is attacked here, as the first choice of each attack of commands."""


class Rigged(random.Random):
    """Chances that choose the command, or the state of it, that takes a moment, and come early in what it does."""

    def random(self):
        return super().random() * 0.3

    def choice(self, seq):
        quick = [item for item in seq if item in (QUICK, "sft, finished")] if len(seq) > 9 else []
        return quick[0] if quick else super().choice(seq)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("attack"))
    yield made
    made.close()


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in ATTACKS],
)
def test_each_attack_is_made_and_survived(place, name):
    if ATTACKS[name].needs_root and not may_mount():
        pytest.skip("file systems cannot be mounted here")
    found = ATTACKS[name].trial(place, Rigged(7), COUNTS.get(name, 1))[1]
    assert found["survived"] == found["tried"] > 0, found
    assert not any(found[column] for column in ("lost", "tracebacks", "silent")), found


def test_purify_trains_again(place):
    assert (place.done("purify").folder / "model").is_dir()


@pytest.mark.slow
def test_what_is_attacked_leaves_what_it_has_to(place):
    for command in dict.fromkeys((*COMMANDS, REPORT)):
        place.done(command)
    for state in STATES:
        assert left(place, state).is_dir()


def test_an_error_of_a_damaged_file_has_to_name_it():
    victim = Path("seed-0/sft/stages/train.json")
    assert outcome_of_damage(1, f"densepath: error: /x/harmed/now/{victim}: put a copy back", [], victim) == "survived"
    assert outcome_of_damage(1, "densepath: error: /x/b.json is damaged, it is no JSON", [], victim) == "survived"
    assert outcome_of_damage(2, "densepath: error: /damaged/now/s.jsonl is in the way", [], victim) == "lost"
    assert outcome_of_damage(1, f"{victim} is damaged", [], victim) == "lost"
    assert outcome_of_damage(0, "", ["model/config.json"], victim) == "silent"
    assert outcome_of_damage(0, "Traceback (most recent call last)", [], victim) == "tracebacks"


def test_a_command_line_has_to_end_in_one_line():
    error = "densepath: error: seed=-5 must be at least 0\n"
    assert (
        outcome_of(2, error) == outcome_of(1, f"densepath: warning: slow\n{error}") == outcome_of(0, "") == "survived"
    )
    assert outcome_of(2, error + error) == outcome_of(99, error) == outcome_of(-9, "") == outcome_of(1, "no") == "lost"
    assert outcome_of(1, "Traceback (most recent call last):\n") == "tracebacks"
    assert means_nothing("adam_epsilon", "inf")
    assert means_nothing("seed", "-1")
    assert not means_nothing("max_steps", "-1")


def test_flags_are_those_of_the_command():
    names = {flag.name: flag for flag in flags("dpr")}
    assert (names["seed"].is_number, names["output_dir"].is_number, names["output_dir"].is_place) == (
        True,
        False,
        True,
    )
    assert {"adam_epsilon", "num_train_epochs", "beta"} <= names.keys()
    assert "push_to_hub" not in names
    assert "sft_max_steps" in {flag.name for flag in flags("experiment")}


def test_a_request_that_was_cut_off_need_not_be_answered():
    head = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\n"
    assert is_whole(head + b"Content-Length: 2\r\n\r\n{}")
    assert is_whole(head + b"\r\n")
    assert not is_whole(head + b"Content-Length: 9\r\n\r\n{}")
    assert not is_whole(head)
