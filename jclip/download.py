"""Downloads OpenAI's official weights; an interrupted download is resumed, and the SHA-256 is verified."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import home
from .errors import ClipError
from .paths import expand
from .progress import Progress
from .weights import sha256

CACHE = Path("~/.cache/clip")  # the folder that OpenAI's `clip` uses, too
TIMEOUT = 60  # seconds without a byte
LARGEST = 2 << 30  # bytes of a download; the largest official file, RN50x64, has 1.3 billion
HOST = "https://openaipublic.azureedge.net/clip/models"
# name -> (SHA-256, file name), from openai/CLIP clip/clip.py, where the hash is a part of the URL
OFFICIAL = {
    "RN50": ("afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", "RN50.pt"),
    "RN101": ("8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599", "RN101.pt"),
    "RN50x4": ("7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd", "RN50x4.pt"),
    "RN50x16": ("52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa", "RN50x16.pt"),
    "RN50x64": ("be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c", "RN50x64.pt"),
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "ViT-L/14@336px": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px.pt"),
}


def official(name: str, folder: Path = CACHE) -> Path:
    """Return the official weights file of a model, downloading it if necessary.

    Parameters
    ----------
    name : str, a key of OFFICIAL
    folder : str or Path, where official files are kept

    Returns
    -------
    Path

    Raises
    ------
    ClipError
        If the file cannot be downloaded, another file has its name, or the folder cannot be made.
    """
    digest, file_name = OFFICIAL[name]
    folder = expand(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise home.not_writable(folder, error) from None
    return download(f"{HOST}/{digest}/{file_name}", digest, folder / file_name)


def download(url: str, digest: str, target: Path) -> Path:
    """Download a file and verify its hash; an existing file is only verified.

    A download that is interrupted leaves target.part, and the next call resumes it. A complete file with the wrong hash
    is deleted.

    Parameters
    ----------
    url : str
    digest : str, SHA-256 of the file in hexadecimal
    target : Path, where the file will be

    Returns
    -------
    Path, `target`

    Raises
    ------
    ClipError
        If the network fails, or the hash of the download or of an existing file is wrong.
    OSError
        If the disk fails; `filename` is set.
    """
    if target.is_file():
        if sha256(target) == digest:
            return target
        raise ClipError(
            f"{target} is not the official file (its SHA-256 is another); move it away to download it again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        _fetch(url, part)
    except _NetworkError as error:
        kept = f"; {part} is kept, run the same command again to go on" if part.exists() else ""
        raise ClipError(f"cannot download {url} ({error}){kept}") from None
    except OSError as error:  # of the disk; when it is full, the error has no file name
        raise OSError(error.errno, error.strerror or str(error), str(part)) from None
    if sha256(part) != digest:
        part.unlink()
        raise ClipError(
            f"{url}: the download does not have the SHA-256 {digest}; it was removed, run the same command again"
        )
    os.replace(part, target)
    return target


class _NetworkError(Exception):
    """The network or the server failed; the message says why."""


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turn every error of the block into a _NetworkError.

    urllib and http.client raise many classes, on Python 3.9 also plain OSErrors, which elsewhere mean the disk.
    """
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _NetworkError(str(getattr(error, "reason", None) or str(error) or type(error).__name__)) from error


def _fetch(url: str, part: Path) -> None:
    """Append the missing bytes of `url` to the file `part`; raise _NetworkError if they do not come."""
    done = part.stat().st_size if part.exists() else 0
    with _network_errors():
        try:
            response = _request(url, done)
        except urllib.error.HTTPError as error:
            if error.code == 416 and done:  # range not satisfiable: `part` is complete, and its hash will be checked
                return
            raise
    with response:
        if done and response.status != 206:  # not partial content: the server sends the whole file
            done = 0
        length = response.headers.get("Content-Length") or ""
        total = done + int(length) if length.isdecimal() else None
        with open(part, "ab" if done else "wb") as file, Progress(total, part.stem, "B", initial=done) as progress:
            for block in _blocks(response):
                done += len(block)
                if done > LARGEST:
                    file.truncate(0)
                    raise _NetworkError(f"it sends more than {LARGEST} bytes, which no official file has")
                file.write(block)
                progress.update(len(block))
    if total is not None and done < total:
        raise _NetworkError(f"the connection ended after {done} of {total} bytes")


def _request(url: str, start: int):
    """Return the server's response, with the content from byte `start` on."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    # Jittor replaces ssl's default context by one that verifies nothing; this one verifies.
    return urllib.request.urlopen(request, timeout=TIMEOUT, context=ssl.create_default_context())


def _blocks(response) -> Iterator[bytes]:
    """Yield the content in blocks of up to 64 KiB."""
    while True:
        with _network_errors():
            block = response.read(1 << 16)
        if not block:
            return
        yield block
