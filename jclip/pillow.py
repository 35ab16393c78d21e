"""What the caller's program has changed in Pillow, for the reading processes, which do not run that program."""

from __future__ import annotations

from typing import NamedTuple

from PIL import Image, ImageFile


class Settings(NamedTuple):
    """Pillow's settings that decide which images can be read."""

    max_pixels: int | None
    load_truncated: bool
    formats: dict  # name -> (class, accept) as in Image.OPEN, of plugins from outside Pillow


def settings() -> Settings:
    """Return the settings of this process."""
    formats = {name: entry for name, entry in Image.OPEN.items() if not entry[0].__module__.startswith("PIL.")}
    return Settings(Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, formats)


def apply(wanted: Settings) -> None:
    """Set them in this process."""
    Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = wanted.max_pixels, wanted.load_truncated
    for name, (factory, accept) in wanted.formats.items():
        Image.register_open(name, factory, accept)
