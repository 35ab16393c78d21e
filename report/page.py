"""The report as one HTML page: data, thumbnails, styles and script are all in it, and nothing is fetched.

The template is report/templates/report.html; the texts of the page, in English and Chinese, are in texts.json beside
it. The page builds itself from the data with textContent only, so a name in the data is never read as HTML.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from fewshot.errors import TaskError

TEMPLATES = Path(__file__).parent / "templates"
PHOTOS = 5000  # test photographs on a page, if nobody asks for another number
LANGUAGES = ("auto", "en", "zh")  # auto: that of the browser
PICTURES_IN_BLOCK = 64  # thumbnails that the page decodes together
# in JSON inside <script>: nothing that could end the element, or begin a comment
SAFE_JSON = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def parts(data: dict, thumbnails: Iterable[str], language: str = "auto") -> Iterator[str]:
    """Yield the parts of the page; thumbnails are asked for while it is written, so they are never all in memory.

    Parameters
    ----------
    data : dict
        What `data.summary` returns, with "photographs" and "pictures" ({set: rows}, in the order of the thumbnails).
    thumbnails : iterable of str
        Data URIs; "" where there is no picture.
    language : {"auto", "en", "zh"}

    Raises
    ------
    TaskError
        If Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError:
        raise TaskError("the report needs Jinja2; run: pip install -r requirements.txt") from None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    texts = json.loads(_read("texts.json"))
    style, script = _read("report.css"), _read("report.js")
    yield from environment.get_template("report.html").generate(
        language=language,
        text=texts["zh" if language == "zh" else "en"],
        texts=safe_json(texts),
        style=style,
        style_hash=content_hash(style),
        script=script,
        script_hash=content_hash(script),
        data=safe_json(data),
        blocks=_blocks(iter(thumbnails)),
    )


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _blocks(thumbnails: Iterator[str]) -> Iterator[str]:
    while block := list(islice(thumbnails, PICTURES_IN_BLOCK)):
        yield safe_json(block)


def safe_json(value: dict | Sequence) -> str:
    """Return JSON that can stand in a <script> element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(SAFE_JSON)


def content_hash(content: str) -> str:
    """Return the source expression of an inline style or script for the Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode('utf-8')).digest()).decode()}"
