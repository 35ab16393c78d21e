"""A reader at work under watch: what it does besides reading, how long it takes, what memory. A process of its own for
a few files:

    python -m tests.watch READER:FILE …

Prints a line of JSON for each: how it ended (read, refused or worse), why, seconds, bytes of memory beyond what was
used before.
"""

from __future__ import annotations

import encodings.cp437
import encodings.utf_8_sig  # noqa: F401
import json
import os
import re
import resource
import signal
import sys
import time
import traceback
from functools import partial
from pathlib import Path
from typing import Callable

import safetensors  # noqa: F401

from fewshot import artifacts, data, prompts
from fewshot.errors import TaskError
from jclip import weights
from jclip.errors import ClipError

SECONDS = 5  # for one file
MEMORY = 512 << 20  # bytes beyond what the process has
FORBIDDEN = {
    "exec",
    "compile",
    "import",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.chmod",
    "os.link",
    "os.symlink",
    "os.truncate",
    "subprocess.Popen",
    "pickle.find_class",
    "ctypes.dlopen",
    "socket.__new__",
    "socket.connect",
    "socket.bind",
    "shutil.rmtree",
    "sys.settrace",
    "marshal.loads",
    "code.__new__",
    "function.__new__",
}


class TooLong(BaseException):
    """The time for one file is over; no reader may catch it."""


class Watch:
    """Calls a reader; says "read", "refused", or what else happened and why."""

    def __init__(self):
        self.armed, self.seen, self.slowest = False, [], 0.0
        signal.signal(signal.SIGALRM, self.ring)
        sys.addaudithook(self.hook)

    def ring(self, *_):
        raise TooLong

    def hook(self, event: str, arguments: tuple) -> None:
        if self.armed and (
            event in FORBIDDEN or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            self.seen.append(f"{event} {arguments!r:.200}")

    def __call__(self, read: Callable) -> tuple[str, str]:
        self.seen.clear()
        started = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.armed = True
        try:
            read()
            how, why = "read", ""
        except (ClipError, TaskError) as error:
            how, why = "refused", str(error)
            if not why.isprintable() or len(why) > 2000 or "MemoryError" in why or "Unable to allocate" in why:
                how = "badly refused"
        except TooLong:
            how, why = "too long", f"more than {SECONDS} s"
        except BaseException:
            self.armed = False  # a traceback compiles
            how, why = "unexpected", traceback.format_exc()
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.slowest = max(self.slowest, time.perf_counter() - started)
        return ("did more than read", self.seen[0]) if self.seen else (how, why)


def peak() -> int:
    """The most bytes of memory that the process has had since `forget_peak`."""
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + MEMORY, resource.RLIM_INFINITY))


READERS = {
    "weights": weights.read,
    "prompts": lambda path: prompts.read(["Animal_Bear", "teapot"], path.parent),
    "task": lambda path: data.read_task(path.parent),
    **{
        kind.__name__.lower(): lambda path, kind=kind: artifacts.read(path, kind)
        for kind in (artifacts.Text, artifacts.Support, artifacts.Split, artifacts.Adapter)
    },
}


def main(arguments: list[str]) -> None:
    watched = Watch()
    limit_memory()
    for argument in arguments:
        reader, _, path = argument.partition(":")
        forget_peak()
        before, started = peak(), time.perf_counter()
        how, why = watched(partial(READERS[reader], Path(path)))
        print(json.dumps([argument, how, why, time.perf_counter() - started, peak() - before]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
