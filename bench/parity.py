"""Compare jclip's tokens, pixels, features and logits with those that bench/parity_reference.py recorded.

python -m bench.parity OUT_DIR
"""

import argparse

import numpy as np
from PIL import Image

import jclip
from jclip import runtime
from jclip.paths import expand
from jclip.preprocess import pixels


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=expand)
    a = p.parse_args(argv)
    answers = np.load(a.out / "answers.npz")
    archive = a.out / "model.pt"
    model, preprocess = jclip.load(archive if archive.is_file() else a.out)
    jt = runtime.jittor()
    tokens = jclip.tokenize(answers["texts"].tolist())
    batch = np.stack(
        [pixels(Image.open(photo), preprocess.resolution, preprocess.config) for photo in answers["photos"]]
    )
    different = (tokens.numpy() != answers["tokens"]).any(axis=1)
    print(f"tokens   {len(tokens)} texts, {different.sum()} differ: {answers['texts'][different].tolist()}")
    tokens = jt.array(answers["tokens"])
    print(f"pixels   {len(batch)} photographs, largest difference {np.abs(batch - answers['pixels']).max():.1e}")
    with jt.no_grad():
        compare("images", model.encode_image(jt.array(batch)).numpy(), answers["image_features"])
        compare("texts", model.encode_text(tokens).numpy(), answers["text_features"])
        per_image, _ = model(jt.array(batch), tokens)
    print(f"logits   largest difference {np.abs(per_image.numpy() - answers['logits_per_image']).max():.1e}")


def compare(what: str, actual: np.ndarray, expected: np.ndarray) -> None:
    """Print the largest relative L2 error and the smallest cosine of the rows."""
    actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    norm = np.linalg.norm(expected, axis=1)
    error = np.linalg.norm(actual - expected, axis=1) / norm
    cosine = (actual * expected).sum(axis=1) / norm / np.linalg.norm(actual, axis=1)
    print(
        f"{what:8} {len(actual)} rows of width {actual.shape[1]}, largest relative L2 error {error.max():.1e}, "
        f"smallest cosine 1 - {1 - cosine.min():.1e}"
    )


if __name__ == "__main__":
    main()
