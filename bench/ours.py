"""This project's side of the comparisons: python bench/ours.py [MODEL]; bench/worker.py says how it is asked."""
import sys
from functools import lru_cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import tip_adapter_utils as tip  # noqa: E402
from fewshot import artifacts  # noqa: E402
from jclip import features, load, runtime  # noqa: E402
from worker import serve  # noqa: E402


@lru_cache(maxsize=None)
def model():
    return load(sys.argv[1], "cpu")[0]


@lru_cache(maxsize=None)
def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def images(n):
    clip, jt = model(), runtime.jittor()
    side = clip.visual.input_resolution
    with jt.no_grad():
        clip.encode_image(jt.array(noise(n, 3, side, side))).numpy()


def texts(texts):
    list(features.text_features(model(), texts))


def product(m, k, n):
    """The matrix product of which the towers are made: (m, k) times the transpose of (n, k)."""
    jt = runtime.jittor()
    jt.nn.matmul_transpose(jt.array(noise(m, k)), jt.array(noise(n, k))).numpy()


@lru_cache(maxsize=None)
def task(folder):
    return tuple(artifacts.read(Path(folder) / f"{name}.npz", kind) for name, kind in
                 (("text", artifacts.Text), ("support", artifacts.Support), ("val", artifacts.Split)))


def search(folder):
    text, support, val = task(folder)
    judged, _ = tip.trials(support, val)
    chosen = tip.search(text, support, judged, [tip.cache(support.features, support.labels, len(text.names))])
    return {name: chosen[name] for name in ("alpha", "beta", "top1")}


def tip_f(folder):
    _, chosen = tip.train("tip-f", *task(folder), tip.Settings(device="cpu"))
    return {"top1": chosen["top1"]}


if __name__ == "__main__":
    serve({"images": images, "texts": texts, "product": product, "search": search, "tip_f": tip_f})
