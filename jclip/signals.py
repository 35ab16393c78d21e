"""Python's signal handlers beside Jittor's, which end the process on Ctrl-C and whenever a child process is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Jittor also handles SIGSEGV, SIGBUS, SIGFPE and SIGILL: it prints where its C++ code has crashed, and exits.
REPLACED_BY_JITTOR = ("SIGINT", "SIGCHLD", "SIGQUIT")
MODULE = "jit_utils_core"  # installs them when it is loaded
SA_NOCLDSTOP = 1  # Linux's value; Python has no name for it


def restore() -> None:
    """Undo Jittor's signal handlers, in whatever thread.

    Jittor installs them in C++, so Python still knows the handlers of before.
    """
    for name in REPLACED_BY_JITTOR:
        if hasattr(signal, name):  # Windows has SIGINT only
            number = getattr(signal, name)
            handler = signal.getsignal(number)
            if handler is None:  # Python has not known it, either
                handler = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            _set_handler(number, handler)


class _Action(ctypes.Structure):
    """`struct sigaction` of Linux's C libraries."""

    _fields_ = [
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * (1024 // (8 * ctypes.sizeof(ctypes.c_ulong)))),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    ]


def let_children_stop() -> None:
    """Let no handler of SIGCHLD be called for a child process that stops or goes on, on Linux.

    While Jittor compiles its core, its handler takes a compiler that Ctrl-Z has stopped for one that has died, and ends
    the process. The handler is needed there: without it, the import would wait for ever for a compiler that is killed.
    """
    if not sys.platform.startswith("linux"):
        return
    action = _Action()
    sigaction = ctypes.CDLL(None).sigaction
    if sigaction(signal.SIGCHLD, None, ctypes.byref(action)) == 0:
        action.flags |= SA_NOCLDSTOP
        sigaction(signal.SIGCHLD, ctypes.byref(action), None)


def _set_handler(number: int, handler) -> None:
    """Set a handler that Python knows already; `signal.signal` does so in the main thread only."""
    if in_main_thread():
        signal.signal(number, handler)
        return
    address = int(handler) if isinstance(handler, signal.Handlers) else _pythons_handler(number)
    if address is not None:
        set_in_c = ctypes.pythonapi.PyOS_setsig
        set_in_c.argtypes, set_in_c.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        set_in_c(number, address)


def _pythons_handler(number: int) -> int | None:
    """Return the address of a C function by which Python calls its handler of a signal, or None if it has none."""
    if hasattr(ctypes.pythonapi, "PyErr_SetInterruptEx"):
        function = ctypes.pythonapi.PyErr_SetInterruptEx
    elif number == signal.SIGINT:  # the function of Python 3.9 has no argument
        function = ctypes.pythonapi.PyErr_SetInterrupt
    else:
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def in_main_thread() -> bool:
    """Return whether this is the main thread, in which alone Python sets handlers and calls them."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def interrupts_exit() -> Iterator[None]:
    """End the process with exit code 130 if Ctrl-C comes while the block imports Jittor in the main thread.

    After a KeyboardInterrupt in the middle of the import, the process may hang. A handler of the caller's own stays.
    """
    process = os.getpid()

    def stop(number, frame):
        if os.getpid() == process:  # Jittor's compiler processes inherit the handler
            os.write(2, b"\nstopped\n")
        os._exit(130)

    if not in_main_thread() or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
