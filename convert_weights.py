"""CLIP weights of any usual format -> Jittor's .pkl, checked; or OpenAI's official file, downloaded first.

SOURCE is a file (OpenAI's .pt archive, a torch checkpoint, Hugging Face's or open_clip's .safetensors, .pkl, .npz), a
folder of Hugging Face or open_clip, or an official name: ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px, RN50, RN101,
RN50x4, RN50x16, RN50x64. PyTorch is not needed, and nothing in the file is run. What a config in the folder says of the
model is recorded in the .pkl. OpenAI's official files are recognised, and what is computed with them is compared with
published numbers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import jclip
from fewshot import cli
from jclip import published, weights
from jclip.architecture import architecture_of
from jclip.files import atomic_write
from jclip.paths import expand, literal
from jclip.settings import ACTIVATIONS


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__)
    p.add_argument(
        "source", type=expand, metavar="SOURCE", help="a file, a folder or an official name such as ViT-B/32"
    )
    p.add_argument(
        "-o", "--out", type=expand, metavar="FILE", help="what to write (default: SOURCE's name with .pkl, here)"
    )
    p.add_argument(
        "--activation",
        choices=ACTIVATIONS,
        help="of the model, recorded in FILE: plain GELU is that of most models of open_clip (LAION-2B, DataComp). "
        "Needed where no config is beside the weights; the default is OpenAI's QuickGELU then",
    )
    return p.parse_args(argv)


@cli.command
def main(argv=None):
    a = parse(argv)
    source = jclip.weights_file(a.source)
    name = f"{source.resolve().name}.pkl" if source.is_dir() else source.name
    out = a.out or literal(Path(name).with_suffix(".pkl"))
    if not a.out and out.exists() and out.samefile(source):  # the float32 copy would replace the original
        raise jclip.ClipError(f"{source} would be written over itself; name another file with -o")
    if checked := published.check_official(source):
        print(checked)
    state, settings = weights.read_model(source, a.activation)
    sizes = architecture_of(state, settings)
    record = {**({"activation": a.activation} if a.activation else {}), **settings.differences()}
    with atomic_write(out) as file:
        weights.write(state, file, record)
    print(f"{out}: {sizes}; SHA-256 {weights.sha256(out)}")


if __name__ == "__main__":
    sys.exit(main())
