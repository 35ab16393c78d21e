"""Write a random CLIP in OpenAI's release format, and what OpenAI's own code computes with it, for bench/parity.py.

In an environment of its own (never the project's):

    pip install torch==2.13.0 "numpy<2" pillow ftfy regex tqdm && pip install --no-deps clip-anytorch torchvision
    python -m bench.parity_reference OUT_DIR [--model ViT-L/14] PHOTO ...

Writes OUT_DIR/model.pt, whose weights are random (nothing is downloaded), and OUT_DIR/answers.npz, in float32.

With --open-clip ViT-H-14, the model is that of open_clip (pip install --no-deps open-clip-torch; safetensors), and
OUT_DIR is a folder as open_clip writes it. --layers 4 makes both towers shallower than they are; --preprocess takes a
preprocess_cfg as JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from jclip.paths import expand
from tests.golden import record_open_clip
from tests.golden.record_clip import TEXTS, openai, set_norms

# image tower: embed_dim, resolution, layers, width, patch; text tower: context, vocabulary, width, heads, layers
MODELS = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12),
    "RN101": (512, 224, (3, 4, 23, 3), 64, None, 77, 49408, 512, 8, 12),
    "RN50x4": (640, 288, (4, 6, 10, 6), 80, None, 77, 49408, 640, 10, 12),
    "RN50x16": (768, 384, (6, 8, 18, 8), 96, None, 77, 49408, 768, 12, 12),
    "RN50x64": (1024, 448, (3, 15, 36, 10), 128, None, 77, 49408, 1024, 16, 12),
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
    "ViT-L/14@336px": (768, 336, 24, 1024, 14, 77, 49408, 768, 12, 12),
}


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out", type=expand)
    p.add_argument("photos", nargs="+", type=expand)
    p.add_argument("--model", choices=MODELS, default="ViT-B/32")
    p.add_argument("--open-clip", metavar="NAME", help="a name of open_clip.list_models(), instead of --model")
    p.add_argument("--layers", type=int, metavar="N", help="of both towers, with --open-clip")
    p.add_argument("--preprocess", type=json.loads, default={}, metavar="JSON", help="with --open-clip")
    a = p.parse_args(argv)
    a.out.mkdir(parents=True, exist_ok=True)
    if a.open_clip:
        model, preprocess, tokens = open_clip_model(a.open_clip, a.layers, a.preprocess, a.out)
    else:
        clip, code = openai()
        save(random_model(code, a.model), a.out / "model.pt")
        model, preprocess = clip.load(str(a.out / "model.pt"), device="cpu")  # as a user loads it: float32 on a CPU
        tokens = clip.tokenize(TEXTS)
    pixels = torch.stack([preprocess(Image.open(photo)) for photo in a.photos])
    with torch.inference_mode():
        per_image = (model(pixels, tokens) if not a.open_clip else model.get_logits(pixels, tokens))[0]
        np.savez(
            a.out / "answers.npz",
            photos=np.array([str(photo.resolve()) for photo in a.photos]),
            texts=np.array(TEXTS),
            tokens=tokens.numpy(),
            pixels=pixels.numpy(),
            image_features=model.encode_image(pixels).numpy(),
            text_features=model.encode_text(tokens).numpy(),
            logits_per_image=per_image.numpy(),
        )


def random_model(code, name: str):
    """Return a model of an official architecture with random weights, float16 where OpenAI's release is."""
    torch.manual_seed(0)
    model = code.CLIP(*MODELS[name]).eval()
    set_norms(model.visual)
    code.convert_weights(model)
    return model


def open_clip_model(name: str, layers: int | None, preprocess: dict, out: Path):
    """Write the folder of a random model of open_clip; return it, its preprocessing, and the tokens of TEXTS."""
    open_clip = record_open_clip.open_clip()
    config = open_clip.get_model_config(name)
    for tower in ("vision_cfg", "text_cfg"):
        config[tower]["layers"] = layers or config[tower]["layers"]
    model = record_open_clip.make_model(config, spread=0.1)
    record_open_clip.save(model, config, preprocess, out)
    transform = record_open_clip.transform(preprocess, config["vision_cfg"]["image_size"])
    return model, transform, open_clip.tokenize(TEXTS)


def save(model, path: Path) -> None:
    """Write a TorchScript archive like OpenAI's: float16 weights, and three sizes among the tensors."""
    half = {name: value.clone() for name, value in model.state_dict().items()}
    resolution = model.visual.input_resolution
    for name, value in dict(
        input_resolution=resolution, context_length=model.context_length, vocab_size=model.vocab_size
    ).items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    traced = torch.jit.trace(
        model.float(),
        (torch.zeros(1, 3, resolution, resolution), torch.zeros(1, 77, dtype=torch.long)),
        check_trace=False,
    )
    for name, value in traced.named_parameters():
        value.data = half[name]
    traced.save(str(path))


if __name__ == "__main__":
    main()
