"""Records what a reader does besides reading, and its time and memory.

    python -m tests.watch READER:FILE …

Prints a line of JSON for each file: the argument, the outcome (read, refused or worse), the reason, seconds, and bytes
of memory beyond what was used before.
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
    """The time for one file is over. It is no Exception, so that no reader catches it."""


class Watch:
    """Calls readers and returns the outcome, "read", "refused" or what else happened, and the reason."""

    def __init__(self):
        self.is_active, self.violations, self.slowest = False, [], 0.0
        signal.signal(signal.SIGALRM, self.on_alarm)
        sys.addaudithook(self.on_event)

    def on_alarm(self, *_):
        raise TooLong

    def on_event(self, event: str, arguments: tuple) -> None:
        if self.is_active and (
            event in FORBIDDEN or event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        ):
            self.violations.append(f"{event} {arguments!r:.200}")

    def __call__(self, read: Callable) -> tuple[str, str]:
        self.violations.clear()
        started = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.is_active = True
        try:
            read()
            outcome, reason = "read", ""
        except (ClipError, TaskError) as error:
            outcome, reason = "refused", str(error)
            if (
                not reason.isprintable()
                or len(reason) > 2000
                or "MemoryError" in reason
                or "Unable to allocate" in reason
            ):
                outcome = "badly refused"
        except TooLong:
            outcome, reason = "too long", f"more than {SECONDS} s"
        except BaseException:
            self.is_active = False  # a traceback compiles
            outcome, reason = "unexpected", traceback.format_exc()
        finally:
            self.is_active = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.slowest = max(self.slowest, time.perf_counter() - started)
        return ("did more than read", self.violations[0]) if self.violations else (outcome, reason)


def peak() -> int:
    """Return the most bytes of memory that the process has used since `forget_peak`."""
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
        outcome, reason = watched(partial(READERS[reader], Path(path)))
        print(json.dumps([argument, outcome, reason, time.perf_counter() - started, peak() - before]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
