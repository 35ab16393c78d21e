"""Code shared by the commands: common options, the lock of the output folder, and one-line error messages."""

from __future__ import annotations

import argparse
import functools
import io
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a Unix: there is no lock
    fcntl = None

from jclip import bounded, runtime
from jclip.errors import ClipError
from jclip.paths import expand

from .errors import TaskError
from .files import remove_unfinished


def whole_number(low: int, high: float = math.inf):
    """Return an argparse type for whole numbers from `low` to `high`."""

    def number(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(
                f"{value}; expected a whole number from {low}" + f" to {high}" * (high < math.inf)
            )
        return value

    number.__name__ = "whole number"
    return number


SHARED = {
    "--data": dict(type=expand, default=Path("Dataset"), metavar="DIR", help="the data set (default: Dataset)"),
    "--weights": dict(
        type=expand,
        default=Path("ViT-B-32.pkl"),
        metavar="FILE",
        help="CLIP weights, a file or folder, or an official name such as ViT-B/16 or RN50 (default: ViT-B-32.pkl)",
    ),
    "--output": dict(
        type=expand,
        default=Path("output"),
        metavar="DIR",
        help="folder for the files that the commands exchange (default: output)",
    ),
    "--split": dict(
        choices=("A", "B"),
        default="B",
        help="contest split: A reads classes.txt and TestSetA, B classes_b.txt and TestSetB (default: B)",
    ),
    "--device": dict(choices=runtime.DEVICES, default="auto", help="auto takes CUDA where it works (default: auto)"),
    "--precision": dict(
        choices=runtime.PRECISIONS,
        default="float32",
        help="half computes in float16 on CUDA, in bfloat16 on a CPU with AVX512-BF16 (default: float32)",
    ),
    "--seed": dict(type=whole_number(0, 2**32 - 1), default=1, metavar="N", help="random seed (default: 1)"),
}


def parser(description: str, *shared: str) -> argparse.ArgumentParser:
    """Make a parser with the named options of SHARED; `description` is the docstring of the command."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in shared:
        made.add_argument(option, **SHARED[option])
    return made


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create `folder` if it is missing and lock it for this process while the block runs.

    The operating system releases the lock when the process ends, even if it is killed. Unfinished files of earlier runs
    that were killed are removed.

    Raises
    ------
    TaskError
        If another run has locked the folder.
    """
    folder = expand(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if _lock(file):
            remove_unfinished(folder)
        yield


def _lock(file) -> bool:
    """Lock the file and return whether locks are supported; raise TaskError if another run has locked it."""
    try:
        if fcntl:
            # not flock: the compiler processes that Jittor forks would inherit its lock
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return bool(fcntl)
    except (BlockingIOError, PermissionError):
        folder = Path(file.name).parent
        raise TaskError(
            f"{folder}: another run is at work in it; wait until it has ended, or name another folder with --output"
        ) from None
    except OSError:
        return False


class _StderrHandler(logging.Handler):
    """Prints plain messages to the current sys.stderr, which may change between messages."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


_stderr_handler = _StderrHandler()


def _show_messages() -> None:
    """Print the log messages of the packages to stderr, such as the device in use; repeated calls change nothing."""
    for name in ("jclip", "fewshot", "report"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(_stderr_handler)


def command(main):
    """Decorate main(argv) of a command: the result returns an exit code.

    It is 0; 1 for a user error, with one line on stderr; 130 after Ctrl-C; 1 without a message for a closed pipe.
    """

    @functools.wraps(main)
    def run(argv=None) -> int:
        _show_messages()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # the terminal may be unable to show a file name
        try:
            main(argv)
            if sys.stdout:  # a daemon may have none
                sys.stdout.flush()
            return 0
        except (ClipError, TaskError) as error:
            message = str(error)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and error.filename is None:  # such as by `| head`
                # otherwise Python reports an error at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                return 1
            message = bounded.one_line(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130
        print(f"error: {message}", file=sys.stderr)
        return 1

    return run
