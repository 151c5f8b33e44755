"""Files are there whole, or as they were before."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from densepath.errors import DamagedFileError, MissingFileError, StorageError
from densepath.io import (
    atomic_folder,
    atomic_path,
    file_sha256,
    hold_lock,
    read_json,
    read_jsonl,
    read_log,
    write_json_atomic,
    write_jsonl_atomic,
    write_text_atomic,
)
from tests.power import cut

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


def test_what_killed_writers_left_goes_with_the_next_write_but_not_what_another_process_is_writing(tmp_path):
    path, other = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.gz"
    ends = "import os, sys; from pathlib import Path; from densepath.io import atomic_path"
    killed = f"{ends}\nwith atomic_path(Path(sys.argv[1])): os._exit(9)"
    writes = f"{ends}\nwith atomic_path(Path(sys.argv[1])) as t:\n    t.write_text('2'); print(1, flush=True); input()"
    for each in (path, other):
        assert subprocess.run([sys.executable, "-c", killed, str(each)], check=False).returncode == 9
    assert len(list(tmp_path.glob(".rows.jsonl.*.tmp"))) == 2
    words = [sys.executable, "-c", writes, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as under_way:
        assert under_way.stdout.readline() == "1\n"
        write_text_atomic(path, "1")
        assert len(list(tmp_path.glob(".rows.jsonl.*.tmp"))) == 2  # of the other file, and what is being written
        under_way.communicate("go on\n")
    assert path.read_text() == "2"
    write_text_atomic(other, "1")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["rows.jsonl", "rows.jsonl.gz"]


def test_a_line_of_a_log_that_a_kill_cut_short_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = '{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.25}\n'
    for end in range(whole.index("\n") + 1, len(whole)):
        path.write_text(whole[:end])
        # Cut right before its line feed, the second line is whole.
        assert [row["step"] for row in read_log(path)] == ([1, 2] if end == len(whole) - 1 else [1])
    path.write_bytes(whole.encode() + '{"text": "ü'.encode()[:-1])  # in the middle of a character
    assert len(read_log(path)) == 2
    path.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(DamagedFileError, match=rf"{path} is damaged, line 1: .*: remove it"):
        read_log(path, "remove it")
    assert read_log(tmp_path / "none.jsonl") == []


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


@pytest.mark.parametrize("place", ["pathlib.Path.write_text", "os.fsync", "os.replace", "os.open"])
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


@pytest.mark.parametrize(("mask", "file", "folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700), (0, 0o666, 0o777)])
def test_the_umask_decides_who_may_read_and_a_replaced_file_keeps_its_mode(tmp_path, mask, file, folder):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    def written_by_a_library(path):
        (path / "weights").touch(0o600)

    old = os.umask(mask)
    try:
        write_text_atomic(tmp_path / "value.txt", "x")
        with atomic_folder(tmp_path / "model") as place:
            written_by_a_library(place)
        write_text_atomic(tmp_path / "own.txt", "x")
        (tmp_path / "own.txt").chmod(0o640)
        write_text_atomic(tmp_path / "own.txt", "y")
    finally:
        os.umask(old)
    assert mode(tmp_path / "value.txt") == mode(tmp_path / "model/weights") == file
    assert mode(tmp_path / "model") == folder
    assert mode(tmp_path / "own.txt") == 0o640


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
    with pytest.raises(StorageError, match=f"{tmp_path}: this file system knows no locks .*DENSEPATH_LOCKS=off"):
        hold_lock(tmp_path / ".lock", "busy")
    monkeypatch.setenv("DENSEPATH_LOCKS", "off")
    hold_lock(tmp_path / ".lock", "busy").release()


# --- durable before done ---------------------------------------------------------------------------------------------

CHANGES = {
    "write_json_atomic(folder / 'deep/er/a.json', [1])": ([1], "1", [1]),
    "write_json_atomic(folder / 'a.json', [2])": ([2], "1", None),
    "save(folder / 'model', 2)": ([1], "2", None),
    "save(folder / 'deep/er/model', 1); write_json_atomic(folder / 'deep/er/a.json', [1])": ([1], "1", [1]),
}
"""What is done after a start of a.json [1] and model "1", and what is there then."""
STOPPED = """
import os, sys; from pathlib import Path; from densepath import io; from densepath.io import *
from tests.power import record

def save(path, value):
    with atomic_folder(path) as place:
        (place / 'weights').write_text(str(value)); (place / 'b').mkdir()

def counted(inner, at):
    def call(*given, **named):
        global calls; calls += 1
        if calls == at: os._exit(9)
        return inner(*given, **named)
    return call

def run(place, at):
    folder = place / 'run'
    record(place / 'journal', place / 'shadow')
    make_folder(folder); write_json_atomic(folder / 'a.json', [1]); save(folder / 'model', 1)
    for name in ('fsync', 'replace', 'open', 'mkdir', 'unlink', 'rename', 'rmdir'):
        setattr(os, name, counted(getattr(os, name), at))
    exec(sys.argv[2])
    os._exit(0)

for at in range(1, 99):
    calls, place = 0, Path(sys.argv[1]) / str(at)
    place.mkdir()
    pid = os.fork()
    if pid == 0: run(place, at)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 9: sys.exit(code)
"""


def _state(folder: Path) -> tuple[object, ...]:
    deep, model = folder / "deep/er/a.json", folder / "model/weights"
    if deep.exists() and (folder / "deep/er").stat().st_nlink > 2:  # what was done before it is there too
        assert (folder / "deep/er/model/weights").read_text() == "1"
    return (
        read_json(folder / "a.json"),
        model.read_text() if model.parent.exists() else None,
        read_json(deep) if deep.exists() else None,
    )


@pytest.mark.parametrize("change", CHANGES, ids=range(len(CHANGES)))
def test_what_is_done_outlives_a_power_cut_at_any_call(tmp_path, change):
    """Stopped before its n-th call that changes a disk: what was there before, or what was written; never less."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, tmp_path, change], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = ([1], "1", None), CHANGES[change]
    places = sorted(tmp_path.iterdir(), key=lambda place: int(place.name))
    assert len(places) > 8
    for place in places:
        words = [place / name for name in ("run", "journal", "shadow")]
        cut(*words, removed_come_back=bool(int(place.name) % 2))
        # A folder that takes another's place has no name between two renames: whoever wrote it writes it again.
        assert _state(words[0]) in (before, after, (before[0], None, None)), place.name
    assert _state(places[-1] / "run") == after


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that takes no files from anybody")
@pytest.mark.parametrize("place", ["/proc/x.jsonl", "/proc/sub/x.jsonl"])
def test_a_place_that_never_takes_a_file_is_not_tried_again(place):
    with pytest.raises(StorageError, match=rf"^cannot write {place}: .*; give a place that you may write to$"):
        write_jsonl_atomic(Path(place), [])


def test_a_folder_that_was_removed_meanwhile_can_be_tried_again(tmp_path):
    place = tmp_path / "gone/x.jsonl"

    def lose_the_folder() -> None:
        with atomic_path(place) as temporary:
            temporary.unlink()
            place.parent.rmdir()

    with pytest.raises(StorageError, match="its folder was removed meanwhile: run the same command again"):
        lose_the_folder()
