"""What the four scripts share: options spelt the same everywhere, and one line for a user's mistake."""
import argparse
import functools
import sys
from pathlib import Path

from fewshot.errors import TaskError
from jclip.errors import ClipError

SHARED = {
    "--data": dict(type=Path, default=Path("Dataset"), metavar="DIR", help="the data set (default: Dataset)"),
    "--weights": dict(type=Path, default=Path("ViT-B-32.pkl"), metavar="FILE", help="CLIP weights (default: ViT-B-32.pkl)"),
    "--output": dict(type=Path, default=Path("output"), metavar="DIR", help="the files between the stages (default: output)"),
    "--split": dict(choices=("A", "B"), default="B", help="contest split: A reads classes.txt and TestSetA, B classes_b.txt and TestSetB (default: B)"),
    "--device": dict(choices=("auto", "cpu", "cuda"), default="auto", help="auto takes CUDA where it works (default: auto)"),
    "--seed": dict(type=int, default=1, metavar="N", help="of every random choice (default: 1)"),
}


def parser(description: str, *shared: str) -> argparse.ArgumentParser:
    """A parser with the named shared options; `description` is the script's docstring."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in shared:
        made.add_argument(option, **SHARED[option])
    return made


def at_least(low: int):
    """An argparse type: a whole number of at least `low`."""
    def number(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is too small; expected at least {low}")
        return value
    number.__name__ = "whole number"
    return number


def script(main):
    """Decorate a script's main(argv): a mistake becomes one line on stderr and exit code 1; returns the exit code."""
    @functools.wraps(main)
    def run(argv=None) -> int:
        try:
            main(argv)
            return 0
        except (ClipError, TaskError) as error:
            message = str(error)
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130
        print(f"error: {message}", file=sys.stderr)
        return 1
    return run
