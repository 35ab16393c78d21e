"""Writes the report: the page, the same data as JSON, and label_next.csv, all of them or none."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from fewshot import data as task_data
from fewshot.errors import TaskError
from fewshot.files import atomic_write_all
from jclip.paths import expand

from . import copies, data, label_next, page, pictures, signatures, suspects

logger = logging.getLogger("report")
MAX_COMPARED = 5000  # training photographs that are opened to look for copies


class Written(NamedTuple):
    """What was written."""

    json: Path
    csv: Path
    shown: int  # test photographs on the page
    pictures: int  # thumbnails on the page


def write(
    path: Path, answers: data.Answers, folder: Path, split: str = "B", photos: int = page.PHOTOS, language: str = "auto"
) -> Written:
    """Write the report of the answers as an HTML page, with a .json file and label_next.csv beside it.

    Parameters
    ----------
    path : Path
        The page, whose name ends in .html.
    answers : Answers
    folder : Path
        The data folder, for the pictures. Without it, or where photographs are missing, the page has none.
    split : {"A", "B"}
        As for `fewshot.data.read_task`.
    photos : int
        The highest number of test photographs on the page; with 0 the page has no pictures either.
    language : {"auto", "en", "zh"}
    """
    path = expand(path)
    written = Written(path.with_suffix(".json"), path.with_name("label_next.csv"), 0, 0)
    summary = data.summary(answers)
    rows = shown_rows(summary, len(answers.test.names), photos)
    paths = _paths(answers, _opened(answers, rows), expand(folder), split) if photos else {}
    summary["suspects"]["copies"] = _copies(answers, paths)
    shown_val = _shown_val(summary)
    paths["val"] = {row: place for row, place in paths.get("val", {}).items() if row in shown_val}
    content = {**summary, "photographs": list(data.photographs(answers, rows)), "pictures": _numbers(paths)}
    found = [photo for photographs in paths.values() for photo in photographs.values()]
    with atomic_write_all([path, written.json, written.csv]) as (html, report, table):
        for part in page.parts(content, pictures.thumbnails(found), language):
            html.write(part.encode("utf-8"))
        for part in _json(summary, data.photographs(answers)):
            report.write(part.encode("utf-8"))
        table.write(label_next.table(_suggestions(summary)))
    return written._replace(shown=len(rows), pictures=len(found))


def shown_rows(summary: dict, total: int, most: int) -> list[int]:
    """Return the rows of the test photographs on the page: those of findings first, then evenly spaced ones.

    All photographs are on a page without pictures of up to page.PHOTOS.
    """
    most = most or page.PHOTOS
    if total <= most:
        return list(range(total))
    wanted = [entry["row"] for entry in summary["label_next"]["photographs"]]
    wanted += [pair["first"]["row"] for pair in summary["suspects"]["copies"]["train_and_test"]]
    for pair in summary["splits"].get("test", {}).get("confused", []):
        wanted += [photo["row"] for photo in pair["photographs"]]
    wanted = list(dict.fromkeys(wanted))[:most]
    others = np.setdiff1d(np.arange(total), wanted)
    return sorted(wanted + others[np.linspace(0, len(others) - 1, most - len(wanted)).astype(int)].tolist())


def _opened(answers: data.Answers, rows: list[int]) -> dict[str, list[int]]:
    """Return the rows of each set that are opened: those of test on the page, all shots, and those of validation."""
    n_val = 0 if answers.val is None else len(answers.val.labels)
    return {"test": rows, "shots": list(range(len(answers.support.labels))), "val": list(range(n_val))}


def _copies(answers: data.Answers, paths: dict[str, dict[int, Path]]) -> dict:
    """Return near copies, by the photographs at {set: {row: path}} too, up to MAX_COMPARED of them for training."""
    train = suspects.training(answers.support, answers.val)
    places = {i: paths.get(str(part), {}).get(int(row)) for i, (part, row) in enumerate(zip(train.sets, train.rows))}
    found = {i: place for i, place in places.items() if place is not None}
    some = np.linspace(0, len(found) - 1, min(len(found), MAX_COMPARED)).astype(int)
    compared = {i: found[i] for i in np.array(list(found), np.int64)[some].tolist()}
    pixels = copies.Pixels(signatures.read(paths.get("test", {})), signatures.read(compared))
    return copies.find(train, answers.test, pixels)


def _shown_val(summary: dict) -> set[int]:
    """Return the rows of validation photographs whose pictures the page shows: those of findings."""
    found = list(summary["suspects"]["labels"])
    near = summary["suspects"]["copies"]
    pairs = [pair for kind in copies.KINDS for pair in [*near[kind], near["nearest"][kind]] if pair]
    found += [photo for pair in pairs for photo in (pair["first"], pair["second"])]
    val = {photo["row"] for photo in found if photo["set"] == "val"}
    for pair in summary["splits"].get("val", {}).get("confused", []):
        val |= {photo["row"] for photo in pair["photographs"]}
    return val


def _paths(answers: data.Answers, wanted: dict[str, list[int]], folder: Path, split: str) -> dict[str, dict[int, Path]]:
    """Return {set: {row: path}} of the wanted photographs that exist; log what is missing."""
    try:
        listed = task_data.read_test(folder, answers.adapter.names.tolist(), split)
    except (TaskError, OSError) as error:
        logger.warning("the report has no pictures of test photographs: %s", error)
        listed = ()
    test = {photo.name: photo.path for photo in listed}
    names = {"test": answers.test.names, "shots": answers.support.names}
    if answers.val is not None:
        names["val"] = answers.val.names
    found: dict[str, dict[int, Path]] = {}
    for part, rows in wanted.items():
        place = test.get if part == "test" else lambda name: _below(folder, name)
        pairs = ((row, place(str(names[part][row]))) for row in rows)
        found[part] = {row: path for row, path in pairs if path is not None}
        if listed and len(found[part]) < len(rows):
            missing = len(rows) - len(found[part])
            logger.warning("%s does not hold %d of %d photographs (%s)", folder, missing, len(rows), part)
    return found


def _below(folder: Path, name: str) -> Path | None:
    """Return the path of a training photograph, if it exists; names that lead out of the folder are left out."""
    below = PurePosixPath(name)
    if below.is_absolute() or ".." in below.parts or "\\" in name:
        return None
    try:
        return folder / below if (folder / below).is_file() else None
    except OSError:  # such as a name that is too long
        return None


def _numbers(paths: dict[str, dict[int, Path]]) -> dict[str, list[int]]:
    return {part: list(found) for part, found in paths.items()}


def _json(summary: dict, photographs: Iterable[dict]) -> Iterator[str]:
    """Yield the parts of the .json file, a line for each photograph."""
    yield json.dumps(summary, indent=1, ensure_ascii=False, allow_nan=False)[:-2] + ',\n "photographs": ['
    comma = "\n"
    for photo in photographs:
        yield comma + "  " + json.dumps(photo, ensure_ascii=False, allow_nan=False)
        comma = ",\n"
    yield "\n ]\n}\n"


def _suggestions(summary: dict) -> Iterator[list]:
    classes = summary["classes"]
    for rank, entry in enumerate(summary["label_next"]["photographs"], 1):
        top = [cell for label, p in entry["top"] for cell in (classes[label]["name"], p)]
        yield [rank, entry["name"], *top]
