"""One side of bench/speed.py: reads requests from stdin, computes, answers with seconds."""
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
TEXT_BATCH = 32


def jclip_side(path):
    sys.path.insert(0, str(HERE.parent))
    import jclip
    from jclip import features, runtime

    model, _ = jclip.load(path, "cpu")
    jt = runtime.jittor()

    def images(pixels):
        with jt.no_grad():
            return model.encode_image(jt.array(pixels)).numpy()

    return model.visual.input_resolution, images, lambda texts: features.text_features(model, texts)


def torch_side(path):
    import torch

    clip, model = openai_model(path)

    def images(pixels):
        with torch.inference_mode():
            return model.encode_image(torch.from_numpy(pixels)).numpy()

    def texts(texts):
        tokens = clip.tokenize(texts)
        with torch.inference_mode():
            return torch.cat([model.encode_text(tokens[i : i + TEXT_BATCH]) for i in range(0, len(texts), TEXT_BATCH)]).numpy()

    return model.visual.input_resolution, images, texts


def onnx_side(path):
    import onnxruntime
    import torch

    clip, model = openai_model(path)

    class Tower(torch.nn.Module):
        def __init__(self, encode):
            super().__init__()
            self.model, self.encode = model, encode

        def forward(self, x):
            return self.encode(x)

    size = model.visual.input_resolution
    sessions = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, encode, example in (("image", model.encode_image, torch.zeros(2, 3, size, size)), ("text", model.encode_text, clip.tokenize(["a", "b"]))):
            file = f"{folder}/{name}.onnx"
            torch.onnx.export(Tower(encode), (example,), file, input_names=["x"], dynamic_axes={"x": {0: "n"}}, dynamo=False)
            sessions[name] = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def texts(texts):
        tokens = clip.tokenize(texts).numpy()
        return np.concatenate([sessions["text"].run(None, {"x": tokens[i : i + TEXT_BATCH]})[0] for i in range(0, len(texts), TEXT_BATCH)])

    return size, lambda pixels: sessions["image"].run(None, {"x": pixels})[0], texts


def openai_model(path):
    sys.path.insert(0, str(HERE.parent / "tests" / "golden"))
    from record_clip import openai

    clip, _ = openai()
    return clip, clip.load(path, device="cpu")[0]


def main():
    name, path = sys.argv[1:]
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not stand between the answers
    size, images, texts = {"jclip": jclip_side, "torch": torch_side, "onnx": onnx_side}[name](path)
    for line in sys.stdin:
        what, content = json.loads(line)
        work = (images, np.random.default_rng(0).standard_normal((content, 3, size, size), np.float32)) if what == "image" else (texts, content)
        started = time.perf_counter()
        work[0](work[1])
        print(time.perf_counter() - started, file=answers, flush=True)


if __name__ == "__main__":
    main()
