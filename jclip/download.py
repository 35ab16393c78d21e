"""OpenAI's official files: resumed where they stopped, verified, at their place whole or not at all."""

from __future__ import annotations

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import ClipError
from .weights import sha256

CACHE = Path("~/.cache/clip")  # OpenAI's own
TIMEOUT = 60  # seconds without a byte
LARGEST = 2 << 30  # bytes of a download; the largest official file has 0.9 billion
HOST = "https://openaipublic.azureedge.net/clip/models"
# name -> (SHA-256, file), from openai/CLIP clip/clip.py, where the hash stands in the URL
OFFICIAL = {
    "ViT-B/32": ("40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "ViT-B-32.pt"),
    "ViT-B/16": ("5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f", "ViT-B-16.pt"),
    "ViT-L/14": ("b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "ViT-L-14.pt"),
    "ViT-L/14@336px": ("3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "ViT-L-14-336px.pt"),
}


def official(name: str, folder: Path = CACHE) -> Path:
    """The official file of a model, downloaded to `folder` unless it is there; raises ClipError where it cannot be
    had."""
    digest, file = OFFICIAL[name]
    return download(f"{HOST}/{digest}/{file}", digest, Path(folder).expanduser() / file)


def download(url: str, digest: str, target: Path) -> Path:
    """Download `url` to `target`, whose SHA-256 is `digest`.

    A download that stops leaves target.part, and the next call goes on from there. The file gets its name when its hash
    is right; a part that is complete and wrong is removed. Raises ClipError where the network or the content fails,
    OSError with the file's name where the disk does.
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
    except _Stopped as stopped:
        kept = f"; {part} is kept, run the same command again to go on" if part.exists() else ""
        raise ClipError(f"cannot download {url} ({stopped}){kept}") from None
    except OSError as error:  # of the disk; a full one names no file
        raise OSError(error.errno, error.strerror or str(error), str(part)) from None
    if sha256(part) != digest:
        part.unlink()
        raise ClipError(
            f"{url}: the download does not have the SHA-256 {digest}; it was removed, run the same command again"
        )
    os.replace(part, target)
    return target


class _Stopped(Exception):
    """The network or the server has failed; the message is the reason."""


@contextmanager
def _network() -> Iterator[None]:
    """Whatever goes wrong in the block is the network's fault: its errors are of many classes, on Python 3.9 plain
    OSErrors among them."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        raise _Stopped(str(getattr(error, "reason", None) or str(error) or type(error).__name__)) from error


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what is missing of it."""
    from tqdm import tqdm

    done = part.stat().st_size if part.exists() else 0
    with _network():
        try:
            answer = _ask(url, done)
        except urllib.error.HTTPError as error:
            if error.code == 416 and done:  # nothing lies behind what we have: it is complete, and the hash will tell
                return
            raise
    with answer:
        if done and answer.status != 206:  # the server sends the whole file
            done = 0
        length = answer.headers.get("Content-Length") or ""
        total = done + int(length) if length.isdecimal() else None
        with (
            open(part, "ab" if done else "wb") as file,
            tqdm(total=total, initial=done, desc=part.stem, unit="B", unit_scale=True) as bar,
        ):
            for block in _blocks(answer):
                done += len(block)
                if done > LARGEST:
                    file.truncate(0)
                    raise _Stopped(f"it sends more than {LARGEST} bytes, which no official file has")
                file.write(block)
                bar.update(len(block))
    if total is not None and done < total:
        raise _Stopped(f"the connection ended after {done} of {total} bytes")


def _ask(url: str, done: int):
    """The server's answer, from byte `done` on."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    # Jittor switches verification off for the whole process; a context of its own is not concerned by that.
    return urllib.request.urlopen(request, timeout=TIMEOUT, context=ssl.create_default_context())


def _blocks(answer) -> Iterator[bytes]:
    while True:
        with _network():
            block = answer.read(1 << 16)
        if not block:
            return
        yield block
