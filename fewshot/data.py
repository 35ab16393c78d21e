"""The classes and photographs of a task, read from the contest's lists or from plain folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from jclip import bounded
from jclip.paths import expand, literal

from .errors import TaskError

MAX_LIST_BYTES = 256 << 20  # the contest's list has 7 million bytes
MAX_LINE = 4096  # characters of a line in a list
# Characters that would break the lines of result.txt. File names that are not UTF-8 contain surrogates.
NOT_IN_NAMES = re.compile("[\0-\x1f\x7f\x85\u2028\u2029\ud800-\udfff]")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}
UNKNOWN = -1  # the label of a photograph whose class is not known
CLASS_LISTS = {"A": "classes.txt", "B": "classes_b.txt"}  # file name by contest split


class Photo(NamedTuple):
    """A photograph of a task."""

    folder: Path  # the data folder (training) or the test folder; the same object for all photographs, to save memory
    name: str  # path below the folder, with forward slashes
    label: int  # or UNKNOWN

    @property
    def path(self) -> Path:
        return self.folder / self.name


@dataclass(frozen=True)
class Task:
    """The class names in the order of labels, and the photographs of a few-shot task."""

    classes: tuple[str, ...]
    train: tuple[Photo, ...]
    test: tuple[Photo, ...]


def read_task(folder: Path, split: str = "B") -> Task:
    """List the classes and photographs of a data folder; no photograph is opened.

    Contest lists: classes_b.txt (split A: classes.txt) with lines "Animal_Bear 0", train.txt with lines
    "TrainSet/Animal/Bear/1.jpg 0", photographs in TestSetB (TestSetA). Plain folders: train/CLASS/* and test/*.
    Test photographs in a folder named like a class get the label of that class. A class may have no photographs.

    Parameters
    ----------
    folder : Path
    split : {"A", "B"}
        The split of the contest.

    Returns
    -------
    Task

    Raises
    ------
    TaskError
        If the layout is another one, a list cannot be used, or a photograph is missing or badly named.
    """
    folder = expand(folder)
    class_list = folder / CLASS_LISTS[split]
    if class_list.is_file():
        classes = read_classes(class_list)
        return Task(classes, _read_list(folder / "train.txt", folder, len(classes)), read_test(folder, classes, split))
    if (folder / "train").is_dir():
        return _read_folders(folder)
    found = f"holds {', '.join(sorted(os.listdir(folder))[:5]) or 'nothing'}" if folder.is_dir() else "does not exist"
    raise TaskError(
        f"{folder} {found}; expected {class_list.name}, train.txt and TestSet{split}/, or folders train/CLASS/* and "
        "test/*; name the data folder with --data"
    )


def read_test(folder: Path, classes: Sequence[str], split: str = "B") -> tuple[Photo, ...]:
    """List only the test photographs of a data folder, as `read_task` does.

    Parameters
    ----------
    folder : Path
    classes : sequence of str
        The class names in the order of labels.
    split : {"A", "B"}
        The split of the contest.

    Returns
    -------
    tuple of Photo

    Raises
    ------
    TaskError
        If there is no test photograph, one is badly named, or its folder is named like none of the classes.
    """
    folder = expand(folder)
    return _test_photos(folder / (f"TestSet{split}" if (folder / CLASS_LISTS[split]).is_file() else "test"), classes)


def read_classes(path: Path) -> tuple[str, ...]:
    """Read the class names from lines "name label" and return them in the order of labels.

    Raises
    ------
    TaskError
        Unless the names are distinct and the labels are 0 to C - 1, in any order.
    """
    names: dict[int, str] = {}
    seen: set[str] = set()
    for where, name, label in _lines(path):
        if label in names:
            raise TaskError(f"{where}: label {label} is {names[label]!r} already; give every class a label of its own")
        if name in seen:
            raise TaskError(f"{where}: class {name!r} stands twice; name every class once")
        names[label] = name
        seen.add(name)
    if not names:
        raise TaskError(f"{path}: empty; expected one line per class, such as 'Animal_Bear 0'")
    missing = next((label for label in range(len(names)) if label not in names), None)
    if missing is not None:
        raise TaskError(
            f"{path}: {len(names)} classes, but none has label {missing}; labels go from 0 to {len(names) - 1}"
        )
    return tuple(names[label] for label in range(len(names)))


def photographs(path: Path) -> list[Path]:
    """Return [path] for a photograph, or all photographs in and below a folder in natural order.

    Raises
    ------
    TaskError
        If there is no photograph.
    """
    path = expand(path)
    if path.is_dir():
        names = _images_below(path)
        if not names:
            raise TaskError(f"{path}: no photographs in it ({', '.join(sorted(SUFFIXES))})")
        return [literal(path / name) for name in names]
    if not path.is_file():
        raise TaskError(f"{path}: no such photograph or folder")
    return [path]


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("path:line", line) for each line of a list in UTF-8 that is not empty, without spaces at its ends.

    Raises
    ------
    TaskError
        If the file is missing, too large or not in UTF-8.
    """
    try:
        content = bounded.content(path, MAX_LIST_BYTES)
    except FileNotFoundError:
        raise TaskError(f"no {path}; expected a list with lines 'name label'") from None
    except ValueError as error:
        raise TaskError(f"{path}: {error}, too large for a list of photographs") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TaskError(f"{path}:{line}: not UTF-8 ({error}); save it as UTF-8") from None
    for number, line in enumerate(re.split("\r\n|\r|\n", text), 1):
        if line.strip():
            yield f"{path}:{number}", line.strip()


def natural_key(text: str) -> list:
    """Return a sort key that orders numbers by value: image_2 before image_10."""
    parts = re.split(r"([0-9]+)", text)
    # compare first the number of digits, then the text: int() would limit the number of digits
    numbers = [part.lstrip("0") for part in parts]
    return [(len(number), number, part) if i % 2 else (0, part) for i, (part, number) in enumerate(zip(parts, numbers))]


def _read_folders(folder: Path) -> Task:
    names = {name for part in ("train", "test") for name in _folders_in(folder / part)}
    classes = tuple(sorted(names, key=natural_key))
    if not classes:
        raise TaskError(f"{folder / 'train'}: no folders in it; expected one folder per class, with its photographs")
    train = []
    for label, name in enumerate(classes):
        class_folder = folder / "train" / name
        photos = _images_below(class_folder) if class_folder.is_dir() else []
        if not photos and class_folder.is_dir() and any(not file.startswith(".") for file in os.listdir(class_folder)):
            raise TaskError(
                f"{class_folder}: none of its files is a photograph ({', '.join(sorted(SUFFIXES))}); convert them, or "
                "leave the folder empty for a class that is known by its name alone"
            )
        train += [_photo(folder, f"train/{name}/{photo}", label) for photo in photos]
    return Task(classes, tuple(train), _test_photos(folder / "test", classes))


def _folders_in(folder: Path) -> list[str]:
    """Return the names of the non-hidden folders in a folder."""
    folders = (
        [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        if folder.is_dir()
        else []
    )
    for path in folders:
        _check_name(path.name, path)
    return [path.name for path in folders]


def _read_list(path: Path, folder: Path, n_classes: int) -> tuple[Photo, ...]:
    photos: list[Photo] = []
    first_line: dict[str, tuple[str, int]] = {}  # name -> its first line, and the label there
    repeated: list[tuple[str, str]] = []  # later line, name
    for where, name, label in _lines(path):
        if label >= n_classes:
            raise TaskError(
                f"{where}: label {label}, but there are {n_classes} classes (0 to {n_classes - 1}); correct the line "
                f"or choose another --split"
            )
        below = PurePosixPath(name)
        if below.is_absolute() or ".." in below.parts or "\\" in name:
            raise TaskError(
                f"{where}: {name} leads out of {folder}, or holds a backslash; expected a path below the data folder "
                f"with forward slashes"
            )
        name = str(below)
        if name in first_line:
            repeated.append((where, name))
            continue
        first_line[name] = where, label
        photos.append(Photo(folder, name, label))
    if repeated:
        where, name = repeated[0]
        line, label = first_line[name][0].rsplit(":", 1)[1], first_line[name][1]
        raise TaskError(
            f"{where}: {name} stands in line {line} already, with label {label}; {len(repeated)} of "
            f"{len(repeated) + len(photos)} lines repeat a photograph; remove them"
        )
    _check_present(path, folder, photos, first_line)
    return tuple(photos)


def _check_present(path: Path, folder: Path, photos: list[Photo], first_line: dict[str, tuple[str, int]]) -> None:
    """Raise TaskError unless all photographs of a list exist; each folder is listed only once, for speed."""
    files: dict[str, set[str]] = {}
    missing = []
    for photo in photos:
        parent, _, name = photo.name.rpartition("/")
        if parent not in files:
            files[parent] = _files_in(folder / parent)
        if name not in files[parent]:
            missing.append(photo.name)
    if missing:
        some = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise TaskError(
            f"{first_line[missing[0]][0]}: {len(missing)} of {len(photos)} photographs are not in {folder}: {some}; "
            "put them there, or name the right folder with --data, or remove their lines from the list"
        )


def _files_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except PermissionError:
        raise
    except OSError:  # it is missing, not a folder, or its name is too long
        return set()


def _test_photos(folder: Path, classes: Sequence[str]) -> tuple[Photo, ...]:
    if not folder.is_dir():
        raise TaskError(f"no folder {folder}; expected the test photographs there; name the data folder with --data")
    labels = {name: label for label, name in enumerate(classes)}
    photos = []
    for name in _images_below(folder):
        label = labels.get(name.split("/")[0]) if "/" in name else UNKNOWN
        if label is None:
            raise TaskError(
                f"{folder / name}: its folder is none of the {len(classes)} classes; put unlabelled photographs into "
                f"{folder} itself"
            )
        photos.append(_photo(folder, name, label))
    if not photos:
        raise TaskError(f"{folder}: no photographs in it ({', '.join(sorted(SUFFIXES))})")
    return tuple(photos)


def _photo(folder: Path, name: str, label: int) -> Photo:
    _check_name(name, folder / name)
    return Photo(folder, name, label)


def _images_below(folder: Path) -> list[str]:
    """Return the names of all photographs in and below a folder, with forward slashes, in natural order.

    Links are followed; hidden files and folders are skipped.
    """
    names: list[str] = []
    pending = [(str(folder), "", frozenset())]  # (folder, prefix of the names in it, identities of its parent folders)
    while pending:
        here, prefix, above = pending.pop()
        status = os.stat(here)
        identity = status.st_dev, status.st_ino
        if identity in above:
            raise TaskError(f"{here}: a link that leads back to one of its parent folders; remove it")
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.startswith("."):  # .ipynb_checkpoints, .thumbnails
                    continue
                if _is_folder(entry):
                    pending.append((entry.path, f"{prefix}{entry.name}/", above | {identity}))
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    names.append(prefix + entry.name)
    return sorted(names, key=natural_key)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; the error is reported when it is read
        return False


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself, as above
        return True


def _check_name(name: str, path: Path) -> None:
    if NOT_IN_NAMES.search(name):
        raise TaskError(f"{path}: a name with control characters, a line break or not in UTF-8; rename it")


def _lines(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield ("path:line", name, label) for each line "name label" of a list; a name may have spaces."""
    for where, line in text_lines(path):
        words = line.rsplit(maxsplit=1)
        if NOT_IN_NAMES.search(" ".join(words)):
            raise TaskError(
                f"{where}: {line[:60]!r} holds NUL or control characters; the list is perhaps UTF-16 or not text; "
                "save it as UTF-8"
            )
        if len(words) != 2 or not re.fullmatch("[0-9]{1,9}", words[1]) or len(line) > MAX_LINE:
            raise TaskError(f"{where}: {line!r}; expected a name, a space and a label (a whole number from 0)")
        yield where, words[0], int(words[1])
