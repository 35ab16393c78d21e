"""Makes every `import jittor`, also the caller's own, work on this machine and leave the process as it was.

Jittor reads its settings from environment variables while it is imported, installs signal handlers of its own, and
starts processes that compile its core.
"""

from __future__ import annotations

import atexit
import importlib.machinery
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from . import bindings, compat, compiling, jittor_cache, signals


def install() -> None:
    """Put `_Finder` before Python's own finders, once."""
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)


class _Finder:
    """Finds Jittor's modules such that they are imported through the loaders below."""

    @staticmethod
    def find_spec(name: str, path=None, target=None):
        loaders = {"jittor": _GuardedLoader, bindings.MODULE: _KeepingLoader, signals.MODULE: _StoppableLoader}
        loader = loaders.get(name, _CompatibleLoader if name in compat.MODULES else None)
        spec = importlib.machinery.PathFinder.find_spec(name, path, target) if loader else None
        if spec and spec.loader and spec.origin:
            spec.loader = loader(name, spec.origin)
        return spec


class _CompatibleLoader(importlib.machinery.SourceFileLoader):
    """Imports a module of Jittor with the changes that this Python needs."""

    def exec_module(self, module) -> None:
        compat.before_import(module)
        super().exec_module(module)
        compat.after_import(module)


class _KeepingLoader(importlib.machinery.SourceFileLoader):
    """Imports the module that writes Jittor's bindings to Python, and lets it keep them."""

    def exec_module(self, module) -> None:
        super().exec_module(module)
        bindings.keep(module)


class _StoppableLoader(importlib.machinery.ExtensionFileLoader):
    """Imports the library that installs Jittor's signal handlers, before Jittor compiles the rest of its core."""

    def exec_module(self, module) -> None:
        super().exec_module(module)
        signals.let_children_stop()


class _GuardedLoader(importlib.machinery.SourceFileLoader):
    """Imports Jittor without what would end this process later."""

    def exec_module(self, module) -> None:
        # numpy keeps these after their first use, which would warn once Jittor treats denormal numbers as zero
        np.finfo(np.float32), np.finfo(np.float64)
        nvcc = os.environ.get("nvcc_path", "")
        is_compiled = jittor_cache.has_core(nvcc)
        with compiling.shown(nvcc, is_compiled), _variables(is_compiled), signals.interrupts_exit(), _quiet_syntax():
            try:
                super().exec_module(module)
            finally:
                undo_what_ends_the_process()


@contextmanager
def _quiet_syntax() -> Iterator[None]:
    """Hide what Python 3.12 says of escapes in Jittor's strings, each time where it keeps no bytecode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        yield


def undo_what_ends_the_process() -> None:
    """Restore Python's signal handlers, and end the pool of processes with which Jittor has compiled its core, if any.

    These processes are killed together with the thread that has forked them. Jittor forks others where it needs them.
    """
    signals.restore()
    utils = sys.modules.get("jittor_utils")
    if hasattr(utils, "p"):
        atexit.unregister(utils.pool_cleanup)
        utils.pool_cleanup()
        utils.pool_size = 0


@contextmanager
def _variables(is_compiled: bool) -> Iterator[None]:
    """Set the environment variables that only the import of Jittor is to see.

    Under Jupyter, which Jittor recognises by JPY_PARENT_PID, it installs no handler of its own for Ctrl-C. A pool of
    processes is forked at every import, though only compiling its core needs them; if this process is killed in that
    moment, they stay, with its files open. The variable that prevents this also turns use_parallel_op_compiler off.

    Raises
    ------
    ClipError
        If Jittor's cache cannot be written.
    """
    variables = {"JPY_PARENT_PID": str(os.getpid())}
    if is_compiled and os.environ.get("use_parallel_op_compiler") == "0":
        variables["DISABLE_MULTIPROCESSING"] = "1"
    variables = {name: value for name, value in variables.items() if name not in os.environ}
    flags = jittor_cache.compiler_flags()
    if flags:  # Jittor compiles everything again if the variable is set, even if it is empty
        variables["cc_flags"] = flags
    variables.update(jittor_cache.variables())
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
