"""The stack machine that pickles are programs for, without the instructions that could do harm.

A pickle names functions and calls them. Here the caller's table says what a name stands for, or the file is refused
before anything happens; nothing is ever imported, and nothing can be changed but what the pickle has built. What a file
can make the machine do is bounded: the number of instructions, and bytes by the size of the file.
"""

from __future__ import annotations

import pickle
import struct
from typing import BinaryIO, Callable

INSTRUCTIONS = 1_000_000  # of one file; OpenAI's largest model needs some 20,000
COPIES = 3  # of a file's bytes: latin-1 text into bytes, a storage saved as bytes, a storage of the old format
NAME = 1000  # bytes of a name in a pickle


class Allowance:
    """What a file of `size` bytes may cost: instructions, and bytes that are not the file's own."""

    def __init__(self, size: int):
        self.instructions, self.bytes = INSTRUCTIONS, COPIES * size

    def work(self, n: int = 1) -> None:
        self.instructions -= n
        if self.instructions < 0:
            raise pickle.UnpicklingError(f"more than {INSTRUCTIONS} instructions, which no weights need")

    def take(self, n: int) -> None:
        self.bytes -= n
        if n < 0 or self.bytes < 0:
            raise pickle.UnpicklingError("it declares more than it holds")


class Machine:
    """One run over a pickle, from where `file` stands.

    names(module, name) : the function or value that a name stands for; it raises for all others
    storage(kind, key, numel) : the array of a storage that lies outside the pickle, for torch's files
    An object is built by a function and gets its state by its own `set_state`.
    """

    def __init__(self, file: BinaryIO, allowance: Allowance, names: Callable, storage: Callable | None = None):
        self.file, self.allowance, self.names, self.storage = file, allowance, names, storage
        self.end = size(file)
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}

    def run(self):
        while (code := self.read(1)) != pickle.STOP:
            self.allowance.work()
            if code not in INSTRUCTION:
                raise pickle.UnpicklingError(
                    f"it has an instruction {code!r}, which weights have no use for; refused, nothing was run"
                )
            INSTRUCTION[code](self)
        return self.stack.pop()

    def read(self, n: int) -> bytes:
        if n > self.end - self.file.tell():
            raise pickle.UnpicklingError("it declares more than it holds, or is cut short")
        return self.file.read(n)

    def number(self, form: str) -> int | float:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def push(self, value) -> None:
        self.stack.append(value)

    def pushed_since_mark(self) -> list:
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def top(self, n: int) -> tuple:
        """The n topmost values, taken off the stack."""
        if n > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise pickle.UnpicklingError("it takes what is not there")
        values = tuple(self.stack[len(self.stack) - n :])
        del self.stack[len(self.stack) - n :]
        return values

    def memoize(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def line(self) -> str:
        found = self.file.readline(NAME)
        if not found.endswith(b"\n"):
            raise pickle.UnpicklingError("a name without an end")
        return found[:-1].decode("utf-8")

    def name(self, module: str, name: str) -> None:
        """Push what stands for module.name; nothing is imported."""
        found = self.names(text(module), text(name))
        self.push(_Function(found) if callable(found) else found)

    def call(self) -> None:
        function, arguments = self.top(2)
        if type(function) is not _Function or type(arguments) is not tuple:
            raise pickle.UnpicklingError("it calls what is no function")
        self.pay(arguments)
        self.push(function.function(*arguments))

    def pay(self, values: tuple) -> None:
        """Count what a function may look through: a pickle can hand it one long list a million times."""
        self.allowance.work(sum(len(value) for value in values if isinstance(value, (tuple, list, dict))))

    def outside(self) -> None:
        """A storage by its name: ("storage", kind, key, location, number of values, …)."""
        (name,) = self.top(1)
        if (
            self.storage is None
            or type(name) is not tuple
            or len(name) < 5
            or name[0] != "storage"
            or type(name[4]) is not int
            or name[4] < 0
        ):
            raise pickle.UnpicklingError("an unknown reference to data outside the pickle")
        self.push(self.storage(text(name[1]), text(name[2]), name[4]))

    def build(self) -> None:
        (state,) = self.top(1)
        found = self.stack[-1]
        self.pay((state,))
        if type(found) is not dict:  # an OrderedDict's state is torch's _metadata, of no use here
            if not hasattr(found, "set_state"):
                raise pickle.UnpicklingError("an attempt to change what has no state")
            found.set_state(state)

    def set_items(self, pairs: list) -> None:
        found = self.stack[-1]
        if type(found) is not dict or len(pairs) % 2:
            raise pickle.UnpicklingError("items for what is no dict")
        found.update((key(name), value) for name, value in zip(pairs[::2], pairs[1::2]))

    def append(self, values: list) -> None:
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("items for what is no list")
        self.stack[-1].extend(values)


class _Function:
    """A function of ours on the stack: the machine can call it, and nothing can change it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function


# All that builds data in protocols 2 to 5. Not here: instances (INST, OBJ, NEWOBJ_EX), extensions, sets, text numbers,
# LONG4.
INSTRUCTION: dict[bytes, Callable[[Machine], object]] = {
    pickle.PROTO: lambda m: m.read(1),
    pickle.FRAME: lambda m: m.read(8),  # only a hint of how much to read ahead
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.POP: lambda m: m.top(1),
    pickle.POP_MARK: lambda m: m.pushed_since_mark(),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.read(m.number("<B")), "little", signed=True)),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.read(m.number("<B")).decode("utf-8")),
    pickle.BINUNICODE: lambda m: m.push(m.read(m.number("<I")).decode("utf-8")),
    pickle.BINUNICODE8: lambda m: m.push(m.read(m.number("<Q")).decode("utf-8")),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.read(m.number("<B"))),
    pickle.BINBYTES: lambda m: m.push(m.read(m.number("<I"))),
    pickle.BINBYTES8: lambda m: m.push(m.read(m.number("<Q"))),
    pickle.BYTEARRAY8: lambda m: m.push(m.read(m.number("<Q"))),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(m.top(1)),
    pickle.TUPLE2: lambda m: m.push(m.top(2)),
    pickle.TUPLE3: lambda m: m.push(m.top(3)),
    pickle.TUPLE: lambda m: m.push(tuple(m.pushed_since_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.append(m.top(1)),
    pickle.APPENDS: lambda m: m.append(m.pushed_since_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items(m.top(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.pushed_since_mark()),
    pickle.BINGET: lambda m: m.push(m.memo[m.number("<B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
    pickle.BINPUT: lambda m: m.memoize(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.memoize(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.memoize(len(m.memo)),
    pickle.GLOBAL: lambda m: m.name(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.name(*m.top(2)),
    pickle.REDUCE: lambda m: m.call(),
    pickle.NEWOBJ: lambda m: m.call(),
    pickle.BUILD: lambda m: m.build(),
    pickle.BINPERSID: lambda m: m.outside(),
}


def text(value) -> str:
    if type(value) is not str:
        raise pickle.UnpicklingError(f"a {type(value).__name__} where a name belongs")
    return value


def key(value):
    """A dict's key. Tuples are refused: hashing what a pickle nests takes for ever, or the whole stack of the
    process."""
    if type(value) not in (str, int):
        raise pickle.UnpicklingError(f"a {type(value).__name__} as a key")
    return value


def size(file: BinaryIO) -> int:
    here = file.tell()
    size = file.seek(0, 2)
    file.seek(here)
    return size
