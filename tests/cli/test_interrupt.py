"""The first interrupt ends a command in good order, the second at once; what the disk says is one line."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from densepath.cli.main import _expected, _interruptible
from densepath.io import HIDDEN, hidden_secrets, without_secrets

PROGRAM = """
import time; from densepath.cli.main import _interruptible
with _interruptible():
    try:
        print("begun", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("tidying", flush=True)
        time.sleep({seconds})
    print("tidy", flush=True)
"""


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [None, signal.SIGINT, signal.SIGTERM])
def test_once_and_twice(first, second):
    code = PROGRAM.format(seconds=0 if second is None else 60)
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout.readline() == "begun\n"
    program.send_signal(first)
    assert program.stdout.readline() == "tidying\n"
    if second is not None:
        program.send_signal(second)
    out, err = program.communicate(timeout=20)
    if second is None:
        assert (program.returncode, out, err) == (0, "tidy\n", "")
    else:
        assert (program.returncode, out) == (130, "")
        assert err == "\ndensepath: interrupted; what was written is whole, and the same command goes on\n"


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with _interruptible():
        assert signal.getsignal(signal.SIGTERM) is not before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "free some"), (errno.EDQUOT, "free some"), (errno.EFBIG, "free some"), (errno.EROFS, "give a")],
)
def test_what_safetensors_says_of_a_disk_is_one_line(code, remedy):
    said = _expected(SafetensorError(f"Error while serializing: I/O error: no (os error {code})"))
    assert said is not None
    assert remedy in said


def test_secrets_are_known_by_name_and_by_form():
    token = "hf_" + "aB3" * 10
    given = {
        "hub_token": "x",
        "token": "y",
        "eos_token": "</s>",
        "a": [f"--key {token}", 1],
        "b": {"secret_key": "z", "k": 2},
    }
    assert without_secrets(given) == {"eos_token": "</s>", "a": [f"--key {HIDDEN}", 1], "b": {"k": 2}}
    assert hidden_secrets("https://me:pass@host/x at sk-" + "a" * 30) == f"https://{HIDDEN}@host/x at {HIDDEN}"
    assert hidden_secrets("models/sk-1 and http://localhost:80") == "models/sk-1 and http://localhost:80"
