"""A machine for the subset of pickle's instructions that builds data; nothing else in a file is executed.

A pickle is a program for a stack machine. Its instructions name functions and call them. Here a function of the caller
decides what a name stands for, or the file is refused; nothing is imported, and only objects that the pickle itself
built can be changed. A file can make the machine execute a limited number of instructions, and allocate bytes in
proportion to its own size.

PyTorch's torch/_weights_only_unpickler.py has the same shape: a loop over a subset of the instructions, and a table of
allowed names.
"""

from __future__ import annotations

import pickle
import struct
from typing import BinaryIO, Callable

MAX_INSTRUCTIONS = 1_000_000  # of one file; OpenAI's largest model needs about 20,000
# Bytes that may be allocated, in sizes of the file: text encoded to bytes, a storage saved as bytes, and the storage of
# an old file each copy what the file holds.
MAX_COPIES = 3
MAX_NAME = 1000  # bytes of a name in a line of its own


class Allowance:
    """The instructions and bytes that a file may still use.

    Parameters
    ----------
    size : int, bytes of the file
    """

    def __init__(self, size: int):
        self.instructions, self.bytes = MAX_INSTRUCTIONS, MAX_COPIES * size

    def use_instructions(self, n: int = 1) -> None:
        """Count n instructions; raise UnpicklingError if there are too many."""
        self.instructions -= n
        if self.instructions < 0:
            raise pickle.UnpicklingError(f"more than {MAX_INSTRUCTIONS} instructions, which no weights need")

    def use_bytes(self, n: int) -> None:
        """Count n bytes before they are allocated; raise UnpicklingError if there are too many."""
        self.bytes -= n
        if n < 0 or self.bytes < 0:
            raise pickle.UnpicklingError("it declares more than it holds")


class Machine:
    """Executes one pickle, from the current position of a file.

    A pickle builds an object by calling a function, and changes it with the object's own method `set_state`.

    Parameters
    ----------
    file : binary file, seekable
    allowance : Allowance
    resolve : callable (module, name) -> function or value
        Returns what a name stands for; raises UnpicklingError for a name that is not allowed.
    storage : callable (storage type, key, number of values) -> array, or None
        Returns the numbers of a tensor of torch, which lie outside the pickle. None: such references are refused.
    """

    def __init__(self, file: BinaryIO, allowance: Allowance, resolve: Callable, storage: Callable | None = None):
        self.file, self.allowance, self.resolve, self.storage = file, allowance, resolve, storage
        self.end = size(file)
        self.stack: list = []
        self.marks: list[int] = []  # lengths of the stack
        self.memo: dict[int, object] = {}

    def run(self):
        """Execute the pickle to its end and return the object it built.

        Raises UnpicklingError for an instruction or name that is not allowed, and one of `unpickle.DAMAGE` if the
        pickle is damaged.
        """
        while (code := self.read(1)) != pickle.STOP:
            self.allowance.use_instructions()
            if code not in INSTRUCTIONS:
                raise pickle.UnpicklingError(
                    f"it has an instruction {code!r}, which weights have no use for; refused, nothing was run"
                )
            INSTRUCTIONS[code](self)
        return self.stack.pop()

    def read(self, n: int) -> bytes:
        if n > self.end - self.file.tell():
            raise pickle.UnpicklingError("it declares more than it holds, or is cut short")
        return self.file.read(n)

    def read_number(self, form: str) -> int | float:
        """Read a number in a format of the module struct."""
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def read_line(self) -> str:
        line = self.file.readline(MAX_NAME)
        if not line.endswith(b"\n"):
            raise pickle.UnpicklingError("a name without an end")
        return line[:-1].decode("utf-8")

    def push(self, value) -> None:
        self.stack.append(value)

    def pop(self, n: int) -> tuple:
        """Take n values from the stack, the topmost last; those below the last mark are out of reach."""
        if n > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise pickle.UnpicklingError("it takes what is not there")
        values = tuple(self.stack[len(self.stack) - n :])
        del self.stack[len(self.stack) - n :]
        return values

    def pop_to_mark(self) -> list:
        """Take all values above the last mark from the stack, and the mark itself."""
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def memoize(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def push_global(self, module: str, name: str) -> None:
        """Push what `resolve` returns for module.name; nothing is imported."""
        value = self.resolve(text(module), text(name))
        self.push(Function(value) if callable(value) else value)

    def call(self) -> None:
        """Call a function with a tuple of arguments and push the result."""
        function, arguments = self.pop(2)
        if type(function) is not Function or type(arguments) is not tuple:
            raise pickle.UnpicklingError("it calls what is no function")
        self.count_elements(arguments)
        self.push(function.function(*arguments))

    def count_elements(self, values: tuple) -> None:
        """Count each element of the containers as an instruction, because a function may loop over them.

        A pickle can pass the same long list a million times.
        """
        self.allowance.use_instructions(sum(len(value) for value in values if isinstance(value, (tuple, list, dict))))

    def push_storage(self) -> None:
        """Replace a reference ("storage", storage type, key, device, number of values, …) by the storage itself."""
        (reference,) = self.pop(1)
        if (
            self.storage is None
            or type(reference) is not tuple
            or len(reference) < 5
            or reference[0] != "storage"
            or type(reference[4]) is not int
            or reference[4] < 0
        ):
            raise pickle.UnpicklingError("an unknown reference to data outside the pickle")
        self.push(self.storage(text(reference[1]), text(reference[2]), reference[4]))

    def build(self) -> None:
        """Give an object the state on top of the stack."""
        (state,) = self.pop(1)
        target = self.stack[-1]
        self.count_elements((state,))
        if type(target) is not dict:  # the state of an OrderedDict is torch's _metadata, which is not needed
            if not hasattr(target, "set_state"):
                raise pickle.UnpicklingError("an attempt to change what has no state")
            target.set_state(state)

    def set_items(self, pairs: list) -> None:
        """Add keys and values, which alternate in `pairs`, to the dict on top of the stack."""
        target = self.stack[-1]
        if type(target) is Ignored:
            return
        if type(target) is not dict or len(pairs) % 2:
            raise pickle.UnpicklingError("items for what is no dict")
        target.update((key(name), value) for name, value in zip(pairs[::2], pairs[1::2]))

    def add_items(self, values: list) -> None:
        """Add values to the set on top of the stack, which is ignored."""
        if type(self.stack[-1]) is not Ignored:
            raise pickle.UnpicklingError("items for what is no set")

    def extend(self, values: list) -> None:
        """Add values to the list on top of the stack."""
        if type(self.stack[-1]) is Ignored:
            return
        if type(self.stack[-1]) is not list:
            raise pickle.UnpicklingError("items for what is no list")
        self.stack[-1].extend(values)


class Ignored:
    """Replaces an object that is not needed; it takes any arguments, state and items, and keeps none."""

    __slots__ = ()

    def __init__(self, *_):
        pass

    def set_state(self, state):
        pass


class Function:
    """A function on the stack: a pickle can call it, but not read or change it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable):
        self.function = function


# All instructions of protocols 2 to 5 that build data; sets, which weights do not need, are ignored. Left out:
# instances (INST, OBJ, NEWOBJ_EX), extensions, numbers in text, LONG4.
INSTRUCTIONS: dict[bytes, Callable[[Machine], object]] = {
    pickle.PROTO: lambda m: m.read(1),
    pickle.FRAME: lambda m: m.read(8),  # a hint of how much to read ahead
    pickle.MARK: lambda m: m.marks.append(len(m.stack)),
    pickle.POP: lambda m: m.pop(1),
    pickle.POP_MARK: lambda m: m.pop_to_mark(),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.read_number("<i")),
    pickle.BININT1: lambda m: m.push(m.read_number("<B")),
    pickle.BININT2: lambda m: m.push(m.read_number("<H")),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.read(m.read_number("<B")), "little", signed=True)),
    pickle.BINFLOAT: lambda m: m.push(m.read_number(">d")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.read(m.read_number("<B")).decode("utf-8")),
    pickle.BINUNICODE: lambda m: m.push(m.read(m.read_number("<I")).decode("utf-8")),
    pickle.BINUNICODE8: lambda m: m.push(m.read(m.read_number("<Q")).decode("utf-8")),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.read(m.read_number("<B"))),
    pickle.BINBYTES: lambda m: m.push(m.read(m.read_number("<I"))),
    pickle.BINBYTES8: lambda m: m.push(m.read(m.read_number("<Q"))),
    pickle.BYTEARRAY8: lambda m: m.push(m.read(m.read_number("<Q"))),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(m.pop(1)),
    pickle.TUPLE2: lambda m: m.push(m.pop(2)),
    pickle.TUPLE3: lambda m: m.push(m.pop(3)),
    pickle.TUPLE: lambda m: m.push(tuple(m.pop_to_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.APPEND: lambda m: m.extend(m.pop(1)),
    pickle.APPENDS: lambda m: m.extend(m.pop_to_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.SETITEM: lambda m: m.set_items(m.pop(2)),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_to_mark()),
    pickle.EMPTY_SET: lambda m: m.push(Ignored()),
    pickle.ADDITEMS: lambda m: m.add_items(m.pop_to_mark()),
    pickle.FROZENSET: lambda m: (m.pop_to_mark(), m.push(Ignored())),
    pickle.BINGET: lambda m: m.push(m.memo[m.read_number("<B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.read_number("<I")]),
    pickle.BINPUT: lambda m: m.memoize(m.read_number("<B")),
    pickle.LONG_BINPUT: lambda m: m.memoize(m.read_number("<I")),
    pickle.MEMOIZE: lambda m: m.memoize(len(m.memo)),
    pickle.GLOBAL: lambda m: m.push_global(m.read_line(), m.read_line()),
    pickle.STACK_GLOBAL: lambda m: m.push_global(*m.pop(2)),
    pickle.REDUCE: lambda m: m.call(),
    pickle.NEWOBJ: lambda m: m.call(),
    pickle.BUILD: lambda m: m.build(),
    pickle.BINPERSID: lambda m: m.push_storage(),
}


def text(value) -> str:
    """Return `value` if it is a str; raise UnpicklingError if it is not."""
    if type(value) is not str:
        raise pickle.UnpicklingError(f"a {type(value).__name__} where a name belongs")
    return value


def key(value) -> str | int:
    """Return `value` if it may be the key of a dict, which a str or int may; raise UnpicklingError if it is not.

    Tuples are refused because hashing a deeply nested one takes very long or overflows the process's stack.
    """
    if type(value) not in (str, int):
        raise pickle.UnpicklingError(f"a {type(value).__name__} as a key")
    return value


def size(file: BinaryIO) -> int:
    """Return the size of an open file in bytes; its position stays as it is."""
    here = file.tell()
    end = file.seek(0, 2)
    file.seek(here)
    return end
