"""One warm process that forks a fresh `densepath` for each request, since importing torch and TRL takes seconds.

Run as `python -m tests.pipeline.fork_server [module ...]`, whose modules are imported too; requests come as JSON lines
on stdin, answers go as JSON lines to stdout (the child's pid, then its exit code: negative for a signal). The server
itself never computes anything, so that its children inherit no threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import types
import warnings
from pathlib import Path
from typing import Any

from tests.power import record

CLONE_NEWNS, CLONE_NEWUSER, MS_REMOUNT = 0x00020000, 0x10000000, 32
IMPORTED = (
    "densepath.pipeline.run",
    "densepath.pipeline.standalone",
    "densepath.scoring.job",
    "transformers.models.llama.modeling_llama",
    "peft.tuners.lora.model",
)
NO_MOUNT = 77  # exit code where the machine does not let a process mount a small disk


def serve() -> None:
    """Import everything, then fork for each line until stdin ends."""
    import torch

    torch.set_num_threads(1)
    for name in (*IMPORTED, *sys.argv[1:]):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the children need not look through all that was imported
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(request)
        _answer(pid)
        _answer(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _answer(value: int) -> None:
    print(json.dumps(value), flush=True)


def _child(request: dict[str, Any]) -> None:
    """Run one command in this forked process and leave; never returns."""
    code = 99
    try:
        for descriptor, name in ((1, "stdout"), (2, "stderr")):
            file = os.open(request[name], os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(file, descriptor)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if request.get("group"):
            os.setpgid(0, 0)
            _fork_workers()
        if request.get("cwd"):
            os.chdir(request["cwd"])
        if request.get("memory"):
            held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, 2 * (held + request["memory"],))
        if request.get("fsize"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], request["fsize"]))
        if request.get("power"):
            record(*map(Path, request["power"]))
        if request.get("hook"):
            install(**request["hook"])
        from densepath.cli.main import main
        from densepath.errors import DamageWarning

        warnings.simplefilter("always", DamageWarning)

        if request.get("disk"):
            code = _on_small_disk(main, request["argv"], Path(request["disk"]["path"]), request["disk"]["sizes"])
        else:
            code = main(request["argv"])
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _fork_workers() -> None:
    """Have workers of `experiment` and `score` forked from this process, in which all that they import is there."""
    from densepath.pipeline import scheduler
    from densepath.scoring import job

    # a worker that is spawned has none of its parent's handlers
    os.register_at_fork(after_in_child=functools.partial(signal.signal, signal.SIGTERM, signal.SIG_DFL))
    for module in (scheduler, job):
        get_context = module.multiprocessing.get_context
        fork = {"get_context": functools.partial(lambda make, method: make("fork"), get_context)}
        module.multiprocessing = types.SimpleNamespace(**{**vars(module.multiprocessing), **fork})  # type: ignore


# --- places to stop at ----------------------------------------------------------------------------------------------


def install(target: str, call: int = 1, when: str = "before", action: str = "kill", touch: str | None = None) -> None:
    """Make the `call`-th call of a function end this process (or wait), before or after it has done its work.

    Args:
        target: "package.module:name" or "package.module:Class.method", as the caller looks it up.
        call: which call, from 1.
        when: "before" or "after".
        action: "kill" (SIGKILL), or "wait" (touch the file and sleep until somebody ends the process).
        touch: file for "wait".
    """
    module, _, path = target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    inner = getattr(owner, name)
    calls = 0

    def stop() -> None:
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        Path(str(touch)).touch()
        time.sleep(60)

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and when == "before":
            stop()
        result = inner(*args, **kwargs)
        if calls == call and when == "after":
            stop()
        return result

    setattr(owner, name, wrapper)


def half_rmtree(path: Any, *args: Any, **kwargs: Any) -> None:
    """What `shutil.rmtree` has done when it is killed half-way: some files are gone."""
    if Path(path).name.startswith("checkpoint-"):
        files = sorted(file for file in Path(path).rglob("*") if file.is_file() and "complete" not in file.name)
        for file in files[::2]:
            file.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    _rmtree(path, *args, **kwargs)


_rmtree = shutil.rmtree


# --- a disk that is full --------------------------------------------------------------------------------------------


def _on_small_disk(main: Any, argv: list[str], path: Path, sizes: list[int]) -> int:
    """Run the command on a disk of its own that grows from run to run; what it did goes to stdout as JSON lines."""
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS | CLONE_NEWUSER) != 0:
        return NO_MOUNT
    try:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError:
        return NO_MOUNT
    flags = 0
    for size in sizes:
        if libc.mount(b"tmpfs", str(path).encode(), b"tmpfs", flags, f"size={size}k".encode()) != 0:
            return NO_MOUNT
        flags = MS_REMOUNT
        sys.stderr.flush()
        before = os.stat(2).st_size
        code = main(argv)
        sys.stdout.flush()
        sys.stderr.flush()
        print("RUN " + json.dumps({"size": size, "code": code, "stderr": [before, os.stat(2).st_size]}), flush=True)
        if code == 0:
            shutil.copytree(path, path.with_name("result"))
            return 0
    return 98


if __name__ == "__main__":
    serve()
