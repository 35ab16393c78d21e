"""Class names for a classification by names alone: a list that is typed, or a file with one name per line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from jclip.paths import expand
from jclip.tokenizer import clean

from .data import text_lines
from .errors import TaskError
from .names import NOT_IN_NAMES

# Commas, enumeration commas, semicolons and bars of several scripts, tabs and line ends.
SEPARATORS = re.compile("[,，﹐､、،;；؛|｜\t\n\r\u2028\u2029]")
COMMENT = "#"  # a line of a file that begins with it is skipped
EXPECTED_FILE = "two or more names, one per line"
EXPECTED = 'expected two or more, such as "cat, dog, car" (in quotes), or a file with one name per line'


def parse(text: str) -> list[str]:
    """Parse "cat, dog, car" into its names; empty entries, as after a last comma, are left out.

    Raises
    ------
    TaskError
        If there are fewer than two names, or two are the same to CLIP.
    """
    names = _separate(text)
    if len(names) == 1:
        raise TaskError(f"{names[0]!r} is one class, and there is no such file; {EXPECTED}")
    if not names:
        raise TaskError(f"{text!r} holds no class; {EXPECTED}")
    _check(names, repr(text))
    return names


def read(path: Path) -> list[str]:
    """Read class names from a text file in UTF-8 with one name per line; commas belong to the name.

    Empty lines and comments are skipped. A file with a single line is read as `parse` reads it, and a class list with
    lines "name label" in the order of its labels.

    Raises
    ------
    TaskError
        If the file is missing, too large or not in UTF-8, there are fewer than two names, or two are the same to CLIP.
    """
    path = expand(path)
    lines = [line for _, line in text_lines(path, EXPECTED_FILE) if not line.startswith(COMMENT)]
    names = _in_order_of_labels(lines) or lines
    if len(names) == 1:
        names = _separate(names[0])
    if len(names) < 2:
        raise TaskError(f"{path}: holds {'one class' if names else 'no class'}; expected {EXPECTED_FILE}")
    _check(names, str(path))
    return names


def _separate(text: str) -> list[str]:
    return [name.strip() for name in SEPARATORS.split(text) if name.strip()]


def _in_order_of_labels(lines: Sequence[str]) -> list[str]:
    """Return the names of lines "name label"; [] unless all lines are, with labels from 0 and different names.

    "digit 0" and "digit 1" also end in numbers, but without them both names would be "digit", so they are kept whole.
    """
    found = [re.fullmatch(r"(.*\S)\s+([0-9]{1,9})", line) for line in lines]
    if not all(found):
        return []
    names = {int(match[2]): match[1] for match in found}
    is_list = sorted(names) == list(range(len(lines))) and len(set(names.values())) == len(lines)
    return [names[label] for label in range(len(lines))] if is_list else []


def _check(names: Sequence[str], where: str) -> None:
    """Raise TaskError for names that cannot be printed, and for two that give the same sentences.

    Prompts have spaces for underscores, and the tokenizer sees texts only as `clean` leaves them, in lower case.
    """
    seen: dict[str, str] = {}
    for name in names:
        if NOT_IN_NAMES.search(name):
            raise TaskError(f"{where}: {name!r} holds control characters; expected plain text")
        key = clean(name.replace("_", " "))
        if key in seen:
            same = "is listed twice" if seen[key] == name else f"and {seen[key]!r} are the same to CLIP"
            raise TaskError(f"{where}: {name!r} {same}; name every class once")
        seen[key] = name
