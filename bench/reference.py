"""Do the work of the benchmarks with PyTorch or another peer, as a process that a bench.worker.Worker starts.

    python -m bench.reference PEER [MODEL.pt]

PEER is one of bench/worker.py's PEERS; PyTorch is eager unless it says otherwise, the others compute what it exports.

The towers are OpenAI's own code; the search over alpha and beta and the fine-tuning follow the pseudocode and
constants of Tip-Adapter (arXiv:2207.09519 and github.com/gaopengcuhk/Tip-Adapter). bench/worker.py has the environment.
"""

import importlib.util
import os
import sys
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import torch

from bench.worker import serve

TEXT_BATCH = 64  # as jclip's
TRAIN_ALPHA, TRAIN_BETA, BATCH = 4.0, 1.0, 256
PEER, _, VARIANT = sys.argv[1].partition("-")  # such as torch-bfloat16
CORES = len(os.sched_getaffinity(0))  # onnxruntime would take all of the machine's, also where taskset allows fewer
torch.set_num_threads(min(torch.get_num_threads(), CORES))


def missing():
    """Return what this peer needs and does not find, or ""."""
    if PEER != "torch" and not all(map(importlib.util.find_spec, (PEER, "onnx"))):
        return f"{PEER} is not installed"
    if VARIANT == "bfloat16":
        from jclip import runtime  # where it is needed alone: the import sets variables for Jittor

        if not runtime.has_bfloat16():
            return "this CPU has no instructions for bfloat16"
    return ""


def version():
    return f"PyTorch {torch.__version__}, numpy {np.__version__}, Python {sys.version.split()[0]}"


def make_model(path, name):
    """Write random weights of an official architecture in OpenAI's release format."""
    from bench import parity_reference
    from tests.golden.record_clip import openai

    parity_reference.save(parity_reference.random_model(openai()[1], name), Path(path))


@cache
def openai(device, precision):
    """Load OpenAI's module and the model: in half as their code loads it on CUDA, or in float32 without TF32."""
    from tests.golden.record_clip import openai

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    clip, _ = openai()
    model = clip.load(sys.argv[2], device=device)[0]
    return clip, model.float() if precision == "float32" else model


@cache
def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@cache
def noise_on(device, *shape):
    return torch.from_numpy(noise(*shape)).to(device)


# ---- the towers ----


def images(n, device="cpu", precision="float32", on_device=False, times=1):
    """Encode `times` batches of n images from pixels, in host or device memory, to features in host memory."""
    side = openai(device, precision)[1].visual.input_resolution
    pixels = noise_on(device, n, 3, side, side) if on_device else noise(n, 3, side, side)
    for _ in range(times):
        tower("image", device, precision)(pixels)


def texts(texts, device="cpu", precision="float32", batch=TEXT_BATCH):
    tokens = openai(device, precision)[0].tokenize(texts).numpy()
    for start in range(0, len(tokens), batch):
        tower("text", device, precision)(tokens[start : start + batch])


def product(n, device, precision):
    """Return the median FLOP/s of ten products of two n x n matrices, the upper bound for the towers."""
    torch.backends.cuda.matmul.allow_tf32 = False
    a, b = torch.randn(2, n, n, device=device, dtype={"float32": torch.float32, "half": torch.float16}[precision])
    seconds = []
    for _ in range(13):
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / float(np.median(seconds[3:]))


@cache
def tower(name, device, precision):
    """Return a function from an array, or a tensor on the device, to features in host memory."""
    clip, model = openai(device, precision)
    encode = {"image": model.encode_image, "text": model.encode_text}[name]
    if PEER == "torch":
        encode = torch.compile(encode) if VARIANT == "compile" else encode

        def run(x):
            with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=VARIANT == "bfloat16"):
                return encode(torch.as_tensor(x, device=device)).cpu().float().numpy()

        return run

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return encode(x)

    side = model.visual.input_resolution
    example = torch.zeros(2, 3, side, side) if name == "image" else clip.tokenize(["a", "b"])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Tower(), (example,), f"{folder}/tower.onnx", input_names=["x"], dynamic_axes={"x": {0: "n"}}, dynamo=False
        )
        return {"onnxruntime": onnxruntime_session, "openvino": openvino_session}[PEER](f"{folder}/tower.onnx")


def onnxruntime_session(path):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = CORES
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


def openvino_session(path):
    """Return a function that compiles the model for each shape once: OpenVINO is faster where it knows the shape."""
    import openvino

    core, content = openvino.Core(), Path(path).read_bytes()
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": CORES,
        "INFERENCE_PRECISION_HINT": "bf16" if VARIANT == "bfloat16" else "f32",
    }

    @cache
    def compiled(shape):
        model = core.read_model(content)
        model.reshape(list(shape))
        return core.compile_model(model, "CPU", hints)

    return lambda x: compiled(x.shape)(x)[0]


# ---- the adapter ----


@cache
def task(folder, device):
    """Load text, cache keys and values (one-hot), views and labels of the shots, validation features and labels."""
    files = {name: np.load(Path(folder) / f"{name}.npz") for name in ("text", "support", "val")}
    views = torch.from_numpy(files["support"]["features"])
    keys = torch.nn.functional.normalize(views.mean(dim=1), dim=1)
    labels = torch.from_numpy(files["support"]["labels"])
    text = torch.from_numpy(files["text"]["features"])
    values = torch.nn.functional.one_hot(labels, len(text)).float()
    val = (torch.from_numpy(files["val"][name]) for name in ("features", "labels"))
    return tuple(tensor.to(device) for tensor in (text, keys, values, views, labels, *val))


def search(folder):
    """Try every pair of the grid in turn, recomputing the cache logits for each, as the published code does."""
    text, keys, values, _, _, features, labels = task(folder, "cpu")
    zero_shot, affinity = 100 * features @ text.T, features @ keys.T
    best = (0.0, 0.0, -1.0)
    for beta in (0.1 + i * (20 - 0.1) / 200 for i in range(200)):
        for alpha in (0.1 + i * (10 - 0.1) / 20 for i in range(20)):
            cached = (beta * affinity - beta).exp() @ values
            top1 = ((zero_shot + alpha * cached).argmax(dim=1) == labels).float().mean().item()
            if top1 > best[2]:
                best = (alpha, beta, top1)
    return dict(zip(("alpha", "beta", "top1"), best))


def tip_f(folder, device="cpu"):
    """Fine-tune for 20 epochs, validate after each, and return the best validation accuracy, without the search."""
    text, keys, values, views, labels, val, val_labels = task(folder, device)
    torch.backends.cuda.matmul.allow_tf32 = False
    adapter = torch.nn.Linear(keys.shape[1], len(keys), bias=False, device=device)
    adapter.weight = torch.nn.Parameter(keys.clone())
    rows, targets = views.flatten(0, 1), labels.repeat_interleave(views.shape[1])
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20 * -(-len(rows) // BATCH))
    generator, best = torch.Generator().manual_seed(1), 0.0

    def logits(x):
        return 100 * x @ text.T + TRAIN_ALPHA * ((TRAIN_BETA * adapter(x) - TRAIN_BETA).exp() @ values)

    for _ in range(20):
        for chosen in torch.randperm(len(rows), generator=generator).to(device).split(BATCH):
            loss = torch.nn.functional.cross_entropy(logits(rows[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            best = max(best, (logits(val).argmax(dim=1) == val_labels).float().mean().item())
    return {"top1": best}


if __name__ == "__main__":
    serve(
        {
            function.__name__: function
            for function in (missing, version, make_model, images, texts, product, search, tip_f)
        }
    )
