"""How close jclip comes to OpenAI's code: tokens, pixels, features and logits on what bench/parity_reference.py
recorded.

python -m bench.parity OUT_DIR
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import jclip
from jclip import runtime
from jclip.preprocess import pixels


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=Path)
    a = p.parse_args()
    answers = np.load(a.out / "answers.npz")
    model, preprocess = jclip.load(a.out / "model.pt")
    jt = runtime.jittor()
    tokens = jclip.tokenize(answers["texts"].tolist())
    batch = np.stack([pixels(Image.open(photo), preprocess.resolution) for photo in answers["photos"]])
    print(f"tokens   {len(answers['texts'])} texts, {(tokens.numpy() != answers['tokens']).sum()} ids differ")
    print(f"pixels   {len(batch)} photographs, largest difference {np.abs(batch - answers['pixels']).max():.1e}")
    with jt.no_grad():
        compare("images", model.encode_image(jt.array(batch)).numpy(), answers["image_features"])
        compare("texts", model.encode_text(tokens).numpy(), answers["text_features"])
        per_image, _ = model(jt.array(batch), tokens)
    print(f"logits   largest difference {np.abs(per_image.numpy() - answers['logits_per_image']).max():.1e}")


def compare(what: str, found: np.ndarray, expected: np.ndarray) -> None:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    norm = np.linalg.norm(expected, axis=1)
    error = np.linalg.norm(found - expected, axis=1) / norm
    cosine = (found * expected).sum(axis=1) / norm / np.linalg.norm(found, axis=1)
    print(
        f"{what:8} {len(found)} rows of width {found.shape[1]}, largest relative L2 error {error.max():.1e}, smallest "
        f"cosine 1 - {1 - cosine.min():.1e}"
    )


if __name__ == "__main__":
    main()
