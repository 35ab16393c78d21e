"""Record what open_clip computes with a tiny random model of plain GELU, in the folder layout that it writes.

In an environment of its own (never the project's):

    pip install torch==2.13.0 "numpy<2" pillow ftfy regex tqdm safetensors
    pip install --no-deps open-clip-torch torchvision
    python tests/golden/record_open_clip.py

Writes open_clip/ beside itself: open_clip_model.safetensors (float16, as nothing needs more digits here) and
open_clip_config.json, and answers.npz: pixels and features, and pixels of other configs of preprocessing. The model has
what OpenAI's do not: heads of another width than 64 in both towers, an MLP that is not four times as wide.
"""

import importlib
import io
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

OUT = Path(__file__).parent / "open_clip"
MODEL = {
    "embed_dim": 40,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 88, "head_width": 44, "mlp_ratio": 3.2728, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 300, "width": 48, "heads": 4, "layers": 1},
}
PREPROCESS = {"mean": [0.5, 0.45, 0.4], "std": [0.5, 0.25, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}
OTHERS = [  # of preprocess_cfg
    {"resize_mode": "shortest", "interpolation": "bilinear"},
    {"resize_mode": "squash", "interpolation": "bicubic"},
    {"resize_mode": "longest", "interpolation": "bicubic"},
    {"resize_mode": "longest", "interpolation": "bilinear", "fill_color": 90, "mean": [0, 0, 0], "std": [1, 1, 1]},
]
PICTURES = (0, 1, 4, 5, 6, 7, 8, 9, 10, 11)  # of preprocess.npz: all modes, both orientations, a long and a small one
SIDE = 32


def open_clip():
    """Import and return open_clip.

    The __init__ of torchvision and its operators must be compiled for the torch in use; open_clip needs neither, so
    empty modules replace them.
    """
    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        sys.modules[name] = types.ModuleType(name)
    folders = [Path(folder) / "torchvision" for folder in sys.path]
    sys.modules["torchvision"].__path__ = [str(folder) for folder in folders if folder.is_dir()]
    sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = torch.nn.BatchNorm2d
    return importlib.import_module("open_clip")


def make_model(config: dict, spread: float = 0.3):
    """Make a random model; biases and scales get far from initialisation, so that each of them matters."""
    code = importlib.import_module("open_clip.model")
    torch.manual_seed(0)
    model = code.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], config.get("quick_gelu", False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "class_embedding" not in name:
                parameter.add_(spread * torch.randn_like(parameter))
            parameter.copy_(parameter.half().float())
    return model.eval()


def transform(preprocess: dict, side: int):
    code = importlib.import_module("open_clip.transform")
    return code.image_transform_v2(code.PreprocessCfg(size=side, **preprocess), is_train=False)


def save(model, config: dict, preprocess: dict, folder: Path) -> None:
    """Write the folder of a model as open_clip's push_to_hf_hub does."""
    from safetensors.torch import save_file  # which only this needs of what imports the module

    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(folder / "open_clip_model.safetensors"), metadata={"format": "pt"})
    content = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=2) + "\n")


def record() -> None:
    OUT.mkdir(exist_ok=True)
    model = make_model(MODEL)
    save(model, MODEL, PREPROCESS, OUT)
    files = np.load(OUT.parent / "preprocess.npz")
    pictures = [Image.open(io.BytesIO(files[f"file_{number}"].tobytes())) for number in PICTURES]
    pixels = torch.stack([transform(PREPROCESS, SIDE)(picture) for picture in pictures])
    tokens = torch.zeros(4, 77, dtype=torch.long)
    for row, length in zip(tokens, (2, 9, 17, 30)):  # the end token has the highest id
        row[:length] = torch.tensor([298, *torch.randint(1, 298, (length - 2,)).tolist(), 299])
    with torch.inference_mode():
        answers = dict(
            pixels=pixels.numpy(),
            tokens=tokens.numpy(),
            image_features=model.encode_image(pixels).numpy(),
            text_features=model.encode_text(tokens).numpy(),
        )
    others = [torch.stack([transform(other, SIDE)(picture) for picture in pictures]).numpy() for other in OTHERS]
    np.savez_compressed(
        OUT / "answers.npz",
        **answers,
        pictures=np.array(PICTURES),
        others=np.array([json.dumps(other) for other in OTHERS]),
        **{f"pixels_{i}": values for i, values in enumerate(others)},
    )


if __name__ == "__main__":
    open_clip()
    record()
