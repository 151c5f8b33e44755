"""`densepath COMMAND`: finds the command, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module

from densepath import __version__
from densepath.cli.commands import ROWS
from densepath.errors import DensepathError
from densepath.io import UNWRITABLE, hidden_secrets

GROUPS = {
    "train": {
        "run": "The whole job: SFT, references, dense reward, DPR, held-out evaluation, report.",
        "sft": "Supervised fine-tuning that keeps reference checkpoints on the way.",
        "dpr": "Dense-Path REINFORCE from an SFT model and a reference.",
        "purify": "Sort the demonstrations with the dense reward, and train on the better part again.",
    },
    "decide": {
        "diagnose": "Will DPR help on this SFT run? A preview without training, and a recommendation.",
        "experiment": "Methods x seeds x settings from one recipe: better than every control?",
    },
    "measure": {
        "generate": "Answers of a model to prompts or a benchmark, to score, rank, judge or hand on.",
        "judge": "Whose answers are better? Any prompts, any judge, with intervals and a page.",
        "eval": "Sample held-out completions and check them with a program.",
        "judge-eval": "Is the judge any good? Labels against it, and what it goes by instead.",
        "reward-eval": "Is the reward any good? Labels against it and the baselines it must beat.",
    },
    "data": {
        "score": "Grade every token of given completions with the dense reward.",
        "audit": "Demonstrations that the trained model finds least like expert behaviour.",
        "rank": "Best of n: completions of a prompt by falling reward.",
    },
    "look": {
        "view": "Look at scored completions, or score texts that are typed in: a local web page.",
        "serve": "The dense reward over HTTP, with limits, metrics and an OpenAPI page.",
        "report": "Make the HTML page of a run, an experiment or judged models again.",
    },
    "machine": {
        "plan": "What memory a recipe needs, without weights, and whether it fits.",
        "env": "Versions and devices, for bug reports.",
    },
    "background": {
        "theory": "Verify the statements behind the method numerically.",
    },
}
"""What a reader wants to do -> the commands for it."""
MOVED = {"select": "diagnose"}
"""Command that there was -> the one that took it in."""
COMMANDS = {name: text for commands in GROUPS.values() for name, text in commands.items()}


_INTERRUPTED = "\ndensepath: interrupted; what was written is whole, and the same command goes on"
_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""How Rust's libraries tell an errno."""


def usage() -> str:
    """What `densepath --help` prints."""
    groups = []
    for title, commands in GROUPS.items():
        lines = "".join(f"\n  {name:<12} {text}" for name, text in commands.items())
        groups.append(f"{title}:{lines}")
    shown = "\n\n".join(groups)
    return (
        "usage: densepath COMMAND [--config recipe.yaml] [--key value ...]\n\n"
        "The dense reward hidden in supervised fine-tuning, and Dense-Path REINFORCE on it.\n\n"
        f"{shown}\n\n"
        "densepath COMMAND --help lists a command's arguments, --help_all those of its trainers too.\n"
        "--max-samples is --max_samples; --debug shows tracebacks.\n"
        "exit codes: 0 done, 1 failed, 2 wrong usage or input, 130 interrupted."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"densepath {__version__}")
        return 0
    # Threads that wait by spinning slow a shared machine several-fold; torch reads this when it is first imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command, rest = _known_as(words[0]), list(map(_underscored, words[1:]))
    if command not in COMMANDS:
        print(f"densepath: no command {command!r}; {_instead(command)}", file=sys.stderr)
        return 2
    debug = "--debug" in rest
    if not debug:
        warnings.formatwarning = _warning_line
    with _interruptible():
        return _run(command, rest, debug)


def _run(command: str, rest: list[str], debug: bool) -> int:
    """One command; what goes wrong as one line and an exit code."""
    try:
        if command in ROWS:
            return ROWS[command].run(command, rest)
        return int(import_module(f"densepath.cli.{command}").run(rest))
    except KeyboardInterrupt:
        if debug:
            raise
        print(_INTERRUPTED, file=sys.stderr)
        return 130
    except DensepathError as error:
        if debug:
            raise
        print(f"{_who()}: error: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if debug:
            raise
        message = _expected(error)
        if message is None:
            raise
        print(f"{_who()}: error: {message}", file=sys.stderr)
        return 1


def _instead(word: str) -> str:
    """What to type for a command that there is not."""
    if word in MOVED:
        return f"what it did is in {MOVED[word]}"
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"did you mean {near[0]}? There are" if near else "choose one of:"
    return f"{hint} {', '.join(COMMANDS)}"


def _known_as(word: str) -> str:
    """A command's name, whichever of the two strokes it was written with."""
    return word.replace("_", "-")


def _underscored(word: str) -> str:
    """An argument's name with underscores: `--max-samples=3` says what `--max_samples=3` does.

    >>> _underscored("--max-samples=a-b"), _underscored("-1"), _underscored("a-b")
    ('--max_samples=a-b', '-1', 'a-b')
    """
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if word.startswith("--") else word


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the block in good order, the second at once, with the processes under it."""

    def at_once(number: int, frame: object) -> None:
        os.write(2, f"{_INTERRUPTED}\n".encode())
        os._exit(130)

    def interrupt(number: int, frame: object) -> None:
        for each in before:
            signal.signal(each, at_once)
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is interrupt:  # after an interrupt, another one still ends it at once
                signal.signal(number, handler)


def _who() -> str:
    """The program's name in messages, with the process where a launcher started several."""
    rank = os.environ.get("RANK", "0") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "0"
    return "densepath" if rank == "0" else f"densepath (process {rank})"


def _warning_line(message: Warning | str, category: type[Warning], *place: object, **line: object) -> str:
    """What a warning says, without the place in the code where it was given."""
    return f"{_who()}: warning: {' '.join(str(message).split())}\n"


def _one_line(error: BaseException) -> str:
    return hidden_secrets(" ".join(str(error).split()))


def _expected(error: Exception) -> str | None:
    """A line for failures of the machine rather than of the program: no disk, no memory."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        found = _OS_ERROR.search(text)
        number = seen.errno if isinstance(seen, OSError) else int(found[1]) if found else None
        if number in UNWRITABLE:
            place = f" {seen.filename}" if isinstance(seen, OSError) and seen.filename else ""
            return f"cannot write{place}: {os.strerror(number)}; {UNWRITABLE[number]}"
        if isinstance(seen, OSError) and number == errno.ENAMETOOLONG:
            return f"{str(seen.filename)[:60]}… is too long for the name of a file; give a shorter one"
        if "no space left on device" in text:
            return f"cannot write: the disk is full; {UNWRITABLE[errno.ENOSPC]}"
        if "pytorchstreamwriter failed" in text or ("inline_container" in text and "unexpected pos" in text):
            # What torch.save says of a full disk, without its errno.
            return f"cannot write a checkpoint: the disk is full, or a quota; {UNWRITABLE[errno.ENOSPC]}"
        if "out of memory" in text or "can't allocate memory" in text:
            return f"{_one_line(seen)[:200]}; lower the batch size, max_length or score_token_budget"
        seen = seen.__cause__ or seen.__context__
    return None


if __name__ == "__main__":
    sys.exit(main())
