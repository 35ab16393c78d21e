"""Record the results of OpenAI's own CLIP code, stage by stage, on a tiny random model: golden files of test_clip.py.

In an environment of its own (never the project's):

    pip install torch==2.13.0 "numpy<2" pillow ftfy regex tqdm && pip install --no-deps clip-anytorch torchvision
    python tests/golden/record_clip.py

Writes beside itself clip_weights.npz (the state dict, float16 where OpenAI's release is), clip_stages.npz (inputs and
float32 outputs of each stage), the same of a ResNet in resnet_weights.npz and resnet_stages.npz, tokens.json and
preprocess.npz. `clip-anytorch` carries OpenAI's code.
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

HERE = Path(__file__).parent
SIZES = dict(
    embed_dim=48,
    image_resolution=64,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=16,
    context_length=77,
    vocab_size=300,
    transformer_width=128,
    transformer_heads=2,
    transformer_layers=2,
)
RESNET = dict(  # channels that fill oneDNN's vectors of 8 or 16, and others
    embed_dim=40,
    image_resolution=96,
    vision_layers=(1, 2, 1, 1),
    vision_width=4,
    vision_patch_size=None,
    context_length=77,
    vocab_size=300,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)
TEXTS = [
    "a diagram",
    "a dog",
    "a photo of a Shiba Dog, a type of dog.",
    "",
    " \n\t ",
    "Crème brûlée &amp; tiramisù",
    "汉字 \U0001f436 日本語 한국어",
    "they've  MIXED\tspaces",
    "I'm it's WE'LL you'd they'RE can't don’t",
    "'S 'T d'd",
    "&amp;lt;b&amp;gt; &nbsp;x",
    "<|startoftext|> hi <|EndOfText|>",
    "naïve café ﬁne ﬀ Ａｆｕｌｌ",
    "İstanbul ǅ ß",
    "123 4567 3.14 x² ½ Ⅷ ٣",
    "!!!??? ... --",
    "\u200b zero\u00a0width \x00\x01",
    "\U0001f469‍\U0001f469‍\U0001f467 family",
    "Ã©tÃ© mojibake “quotes”",
    "abababab aaaa bbbb",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
]
LONG = ["word " * 100, "a" * 400, "é" * 200]
# (mode, width, height): both orientations, sizes below and at the resolution, an odd crop, each of Pillow's usual modes
PICTURES = [
    ("RGB", 100, 75),
    ("RGB", 75, 101),
    ("RGB", 64, 64),
    ("RGB", 64, 90),
    ("RGB", 20, 33),
    ("RGB", 301, 40),
    ("L", 90, 70),
    ("P", 90, 70),
    ("RGBA", 70, 90),
    ("CMYK", 90, 71),
    ("1", 90, 70),
    ("LA", 70, 90),
    ("I;16", 90, 70),
]


def openai():
    """Import and return OpenAI's modules clip.clip and clip.model.

    They need pkg_resources' `packaging`, which setuptools no longer has, and torchvision's transforms. The __init__ of
    torchvision needs operators compiled for this torch, so an empty module with the package's path replaces it.
    """
    sys.modules["pkg_resources"] = types.SimpleNamespace(
        packaging=importlib.import_module("packaging.version") and sys.modules["packaging"]
    )
    torchvision = sys.modules["torchvision"] = types.ModuleType("torchvision")
    torchvision.__path__ = [
        str(Path(folder) / "torchvision") for folder in sys.path if (Path(folder) / "torchvision").is_dir()
    ]
    return importlib.import_module("clip.clip"), importlib.import_module("clip.model")


def picture(mode: str, width: int, height: int) -> bytes:
    """Return a smooth pattern with noise as the bytes of a TIFF file for CMYK, or PNG for all other modes."""
    rng = np.random.default_rng([width, height])
    y, x = np.mgrid[:height, :width]
    rgb = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), (x + y) % 256], -1) + rng.normal(
        0, 12, (height, width, 3)
    )
    image = Image.fromarray(rgb.clip(0, 255).astype(np.uint8))
    image = (
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
        if mode == "I;16"
        else image.convert(mode)
    )
    file = io.BytesIO()
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    return file.getvalue()


def set_norms(visual) -> None:
    """Give the batch norms of a ResNet random statistics, scales and shifts, about those of activations.

    As they are made, their statistics are 0 and 1, and the last scale of each block is 0, so that most of the model
    would compute nothing.
    """
    norms = [module for module in visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # keep the statistics of the images below
        torch.nn.init.uniform_(norm.weight, 0.3, 1.2)
        torch.nn.init.normal_(norm.bias, 0, 0.3)
    if not norms:
        return
    with torch.no_grad():
        visual.train()(torch.randn(2, 3, visual.input_resolution, visual.input_resolution))
        visual.eval()
        for norm in norms:
            norm.running_mean += 0.3 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= 0.5 + torch.rand_like(norm.running_var)


def record_tokens(clip) -> None:
    rows = [[text, clip.tokenize(text)[0].tolist(), False] for text in TEXTS]
    rows += [[text, clip.tokenize(text, truncate=True)[0].tolist(), True] for text in LONG]
    trimmed = [[text, ids[: max(i for i, n in enumerate(ids) if n) + 1], truncated] for text, ids, truncated in rows]
    (HERE / "tokens.json").write_text(json.dumps(trimmed, ensure_ascii=True, indent=0) + "\n")


def record_preprocess(clip) -> None:
    transform = clip._transform(SIZES["image_resolution"])
    arrays = {}
    for i, (mode, width, height) in enumerate(PICTURES):
        content = picture(mode, width, height)
        arrays[f"file_{i}"] = np.frombuffer(content, np.uint8)
        arrays[f"pixels_{i}"] = transform(Image.open(io.BytesIO(content))).numpy()
    np.savez_compressed(HERE / "preprocess.npz", modes=np.array([mode for mode, *_ in PICTURES]), **arrays)


def record_stages(model_code) -> None:
    torch.manual_seed(0)
    model = model_code.CLIP(*SIZES.values()).eval()
    with torch.no_grad():  # far from initialisation, so that every bias and scale matters
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "class_embedding" not in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model_code.convert_weights(model)
    state = {name: value.clone().numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(HERE / "clip_weights.npz", **state)
    model = model.float()

    stages = {}
    modules = {f"visual.transformer.resblocks.{i}": block for i, block in enumerate(model.visual.transformer.resblocks)}
    modules.update({f"transformer.resblocks.{i}": block for i, block in enumerate(model.transformer.resblocks)})
    modules.update({"visual.ln_pre": model.visual.ln_pre, "visual": model.visual, "ln_final": model.ln_final})
    for name, module in modules.items():
        # OpenAI's blocks work on (l, n, w)
        order = (lambda x: x.transpose(0, 1)) if "resblocks" in name else (lambda x: x)
        module.register_forward_hook(
            lambda module, inputs, output, name=name, order=order: stages.update(
                {f"{name}.in": order(inputs[0]).numpy().copy(), f"{name}.out": order(output).numpy().copy()}
            )
        )
    image = torch.randn(2, 3, SIZES["image_resolution"], SIZES["image_resolution"])
    tokens = torch.zeros(4, 30, dtype=torch.long)
    for row, length in zip(tokens, (2, 9, 17, 30)):  # the end token has the highest id
        row[:length] = torch.tensor([298, *torch.randint(1, 298, (length - 2,)).tolist(), 299])
    with torch.inference_mode():
        per_image, per_text = model(image, tokens)
        features = model.encode_text(tokens)
    np.savez_compressed(
        HERE / "clip_stages.npz",
        image=image.numpy(),
        tokens=tokens.numpy(),
        text_features=features.numpy(),
        logits_per_image=per_image.numpy(),
        logits_per_text=per_text.numpy(),
        **stages,
    )


def record_resnet(model_code) -> None:
    torch.manual_seed(0)
    model = model_code.CLIP(*RESNET.values()).eval()
    set_norms(model.visual)
    model_code.convert_weights(model)
    np.savez_compressed(
        HERE / "resnet_weights.npz", **{name: value.numpy() for name, value in model.state_dict().items()}
    )
    model = model.float()
    stages = {}
    for name in ("avgpool", "layer1", "layer2", "layer3", "layer4", "attnpool"):
        getattr(model.visual, name).register_forward_hook(
            lambda module, inputs, output, name=name: stages.update({name: output.detach().numpy().copy()})
        )
    torch.manual_seed(1)  # of seeds tried, the first of whose activations none is 0 but for rounding, a kink of ReLU
    image = torch.randn(2, 3, RESNET["image_resolution"], RESNET["image_resolution"])
    image = image.requires_grad_()
    model.encode_image(image).sum().backward()  # biases of batch norms are those of the folded convolutions
    biases = {name: value.grad.numpy() for name, value in model.visual.named_parameters() if name.endswith(".bias")}
    gradients = {f"gradient.{name}": value for name, value in {"image": image.grad.numpy(), **biases}.items()}
    np.savez_compressed(HERE / "resnet_stages.npz", image=image.detach().numpy(), **stages, **gradients)


if __name__ == "__main__":
    clip, model_code = openai()
    record_resnet(model_code)
    record_tokens(clip)
    record_preprocess(clip)
    record_stages(model_code)
