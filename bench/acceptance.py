"""Print what this program computes with your weights beside numbers that others have published for them.

    python -m bench.acceptance WEIGHTS [--image FILE ...]

WEIGHTS is OpenAI's ViT-B/32 in any format. The rows without an image need nothing else and take seconds. For the rows
of an image, give the file under the name that the table has, such as CLIP.png of github.com/openai/CLIP. The exit code
is 1 if a number is off by more than its tolerance. jclip/published.json has the numbers and their sources.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jclip
from fewshot import cli
from jclip import published
from jclip.paths import expand


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--device", "--precision")
    p.add_argument("weights", type=expand, metavar="WEIGHTS", help="a file, a folder or an official name")
    p.add_argument("--image", nargs="+", type=expand, default=[], metavar="FILE", help="images that the table names")
    p.add_argument(
        "--model",
        choices=jclip.available_models(),
        default="ViT-B/32",
        metavar="NAME",
        help="whose numbers (default: ViT-B/32)",
    )
    p.add_argument("--table", type=expand, default=published.TABLE, metavar="FILE", help="other published numbers")
    return p.parse_args(argv)


@cli.command
def main(argv=None):
    a = parse(argv)
    entries = published.read_table(a.table).get(a.model, [])
    if not entries:
        raise jclip.ClipError(f"{a.table} has no numbers of {a.model}")
    check_images(a.image, entries)
    path = jclip.weights_file(a.weights)
    official = published.official_name(path)
    print(f"{path}: {f'the official {official}' if official else 'no official file, by its SHA-256'}")
    rows = published.compare(*jclip.load(path, a.device, precision=a.precision), entries, a.image)
    print(f"\n{'off by':>9} {'allowed':>9}        numbers")
    for row in rows:
        verdict = "right" if row.is_right else "WRONG"
        print(f"{row.off:9.1e} {row.tolerance:9.0e}  {verdict}  {row.count:3}  {row.what}  [{row.source}]")
    missing = sorted({entry["image"] for entry in entries if "image" in entry} - {path.name for path in a.image})
    if missing:
        print(f"\nnot compared, since --image did not give them: {', '.join(missing)}")
    wrong = sum(not row.is_right for row in rows)
    if wrong:
        raise jclip.ClipError(f"{wrong} of {len(rows)} rows are off: wrong weights for {a.model}, or a fault of jclip")
    print(f"\nall {len(rows)} rows are right")


def check_images(images: list[Path], entries: list[dict]) -> None:
    """Raise ClipError for an image that is missing, or that no entry names."""
    names = sorted({entry["image"] for entry in entries if "image" in entry})
    for path in images:
        if not path.is_file():
            raise jclip.ClipError(f"no image {path}")
        if path.name.lower() not in {name.lower() for name in names}:
            raise jclip.ClipError(
                f"{path}: no published number is of an image of this name; expected {', '.join(names)}"
            )


if __name__ == "__main__":
    sys.exit(main())
