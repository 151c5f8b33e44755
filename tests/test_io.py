"""Files are there whole, or as they were before."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.errors import MissingFileError, StorageError
from densepath.io import (
    atomic_path,
    file_sha256,
    hold_lock,
    read_json,
    read_jsonl,
    write_json_atomic,
    write_jsonl_atomic,
    write_text_atomic,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=4))
def test_what_was_written_is_read(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("io")
    write_jsonl_atomic(folder / "rows.jsonl", rows)
    assert read_jsonl(folder / "rows.jsonl") == rows
    write_json_atomic(folder / "deep/er/value.json", rows)
    assert read_json(folder / "deep/er/value.json") == rows
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["rows.jsonl", "value.json"]


def test_lines_end_at_line_feeds_alone(tmp_path):
    """Unicode has other line separators, and texts contain them."""
    rows = [{"text": "a\u2028b\u0085c\x0bd\r"}, {"text": "e"}]
    write_jsonl_atomic(tmp_path / "rows.jsonl", rows)
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == 2
    assert read_jsonl(tmp_path / "rows.jsonl") == rows


def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n'
    for cut in range(whole.index("\n") + 1, len(whole)):
        path.write_text(whole[:cut])
        # Cut right before its line feed, the second line is whole.
        assert [row["step"] for row in read_jsonl(path)] == ([1, 2] if cut == len(whole) - 1 else [1])
    path.write_bytes(whole.encode() + '{"text": "ü'.encode()[:-1])  # in the middle of a character
    assert len(read_jsonl(path)) == 2
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(json.JSONDecodeError):
        read_jsonl(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [1.0, -float("inf")]])
def test_json_that_other_programs_cannot_read_is_refused(tmp_path, value):
    path = tmp_path / "value.json"
    write_json_atomic(path, 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json_atomic(path, value)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_jsonl_atomic(path, [{"value": value}])
    assert read_json(path) == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"nowhere\.json: no such file"):
        read_json(tmp_path / "nowhere.json")


def test_an_error_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "value.txt"
    write_text_atomic(path, "before")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["value.txt"]


@pytest.mark.parametrize("place", ["pathlib.Path.write_text", "os.fsync", "os.replace", "tempfile.mkstemp"])
@pytest.mark.parametrize(
    ("code", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "give a place that you may write to")]
)
def test_a_full_or_closed_disk_is_said_with_the_remedy(tmp_path, monkeypatch, place, code, remedy):
    path = tmp_path / "value.txt"
    write_text_atomic(path, "before")

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(place, refuse)
    with pytest.raises(StorageError) as error:
        write_text_atomic(path, "after")
    monkeypatch.undo()
    assert str(error.value).startswith(f"cannot write {path}: {os.strerror(code)}; {remedy}")
    assert isinstance(error.value, OSError)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["value.txt"]


def test_a_process_that_may_write_no_large_files_keeps_the_small_one(tmp_path):
    """A real refusal by the kernel (a limit on the size of files), half-way through a write."""
    code = (
        "import resource, sys; from pathlib import Path; from densepath.io import write_text_atomic\n"
        "from densepath.errors import StorageError\n"
        "path = Path(sys.argv[1]); write_text_atomic(path, 'before')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "try:\n    write_text_atomic(path, 'x' * 100_000)\n"
        "except StorageError as error:\n    print(error)\n"
    )
    path = tmp_path / "value.txt"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {path}: File too large; free some space")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["value.txt"]


def test_killed_between_writing_and_naming(tmp_path):
    """kill -9 at the last moment: the old text under the name, the new one under none that anybody reads."""
    code = (
        "import os, signal, sys; from pathlib import Path; from densepath import io\n"
        "path = Path(sys.argv[1]); io.write_text_atomic(path, 'before')\n"
        "io.os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "io.write_text_atomic(path, 'after')\n"
    )
    path = tmp_path / "value.txt"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert path.read_text() == "before"
    (left,) = set(os.listdir(tmp_path)) - {"value.txt"}
    assert left.startswith(".value.txt.")
    assert left.endswith(".tmp")


def test_others_may_read_what_was_written(tmp_path):
    write_text_atomic(tmp_path / "value.txt", "x")
    assert stat.S_IMODE((tmp_path / "value.txt").stat().st_mode) == 0o644


def test_sha256_of_known_bytes(tmp_path):
    """FIPS 180-2's examples, and a file longer than one block of reading."""
    path = Path(tmp_path / "bytes")
    path.write_bytes(b"abc")
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    path.write_bytes(b"a" * 1_000_000 + b"")
    assert file_sha256(path) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


def test_a_token_is_in_no_configuration(tmp_path):
    from densepath.pipeline.run_folder import RunFolder

    run = RunFolder(tmp_path / "run")
    for token in ("hf_first", "hf_second"):  # another token is no other run
        run.open_config({"seed": 1, "sft_hub_token": token, "hub_token": token, "inner": {"api_key": token, "a": 1}})
        assert (tmp_path / "run/config.yaml").read_text() == "seed: 1\ninner:\n  a: 1\n"


def test_a_lock_keeps_another_process_out_until_it_ends(tmp_path):
    path = tmp_path / ".lock"
    code = (
        "import pathlib, sys; from densepath.io import hold_lock; "
        f"lock = hold_lock(pathlib.Path({str(path)!r}), 'busy'); print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(StorageError, match="somebody else has it"):
        hold_lock(path, "somebody else has it")
    other.kill()
    other.wait()
    hold_lock(path, "busy").release()
    hold_lock(path, "busy", wait=True).release()


def test_a_place_without_locks_is_no_other_process(tmp_path, monkeypatch):
    def refuse(*given):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)) as error:
        hold_lock(tmp_path / ".lock", "busy")
    assert not isinstance(error.value, StorageError)
