"""CUDA against the CPU and against numpy in float64; skipped where there is no GPU. docs/performance.md has the speed.

Kernels are asked for all at once, so that Jittor compiles them together: `use_parallel_op_compiler=16` saves minutes on
the first run.
"""

import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import GOLDEN, PROJECT
from tasks import make_overlapping_task, train
from test_kernels import WIDTHS, exact_gelu, normal
from test_kernels import attention as exact_attention

import jclip
from jclip import features, runtime, weights
from jclip.architecture import Architecture, expected_shapes
from methods import Settings, cache
from tip_adapter_utils import build_cache, predict_logits

pytestmark = pytest.mark.cuda
DTYPES = ("float32", "float16")
ATTENTION = [  # n, l, w, heads
    (2, 50, 128, 2),
    (3, 77, 64, 1),
    (1, 1, 64, 1),
    (2, 5, 48, 2),
    (1, 19, 12, 4),
    (1, 197, 64, 1),
]
DEMO = ("--weights", PROJECT / "demo/clip.npz", "--prompts", PROJECT / "demo/prompts", "--select", "first")
LEFT = 2_500_000_000  # bytes of the GPU's memory that a hog leaves


@pytest.fixture(autouse=True)
def on_cuda():
    """Jittor computes on CUDA in these tests, and on the CPU again in others."""
    runtime.use("cuda")
    yield
    runtime.use("cpu")


# ---- kernels ----


def rounded(x, dtype):
    """x as Jittor gets it, and the same in float64."""
    x = x.astype(dtype)
    return x, x.astype(np.float64)


def layer_norm(jt, kernels, dtype, shape, mean):
    x, weight, bias = normal(shape) + np.float32(mean), normal(shape[-1:], seed=1), normal(shape[-1:], seed=2)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5) * weight + bias
    tolerance = (3e-4 if mean else 2e-6) + (dtype == "float16") * 2e-3
    return kernels.layer_norm(*map(jt.array, (x, weight, bias)), dtype), exact, tolerance, tolerance


def quick_gelu(jt, kernels, dtype, shape, scale):
    (x, z), bias = rounded(normal(shape, scale), dtype), normal(shape[-1:], seed=1)
    z = z + bias
    exact = z * np.exp(np.minimum(1.702 * z, 0)) / (1 + np.exp(-np.abs(1.702 * z)))
    return (
        kernels.quick_gelu(jt.array(x), jt.array(bias)),
        exact,
        *((1e-5, 3e-6) if dtype == "float32" else (2e-3, 2e-3)),
    )


def gelu(jt, kernels, dtype, shape, scale):
    (x, z), bias = rounded(normal(shape, scale), dtype), normal(shape[-1:], seed=1)
    tolerance = 3e-6 if dtype == "float32" else 2e-3
    return kernels.gelu(jt.array(x), jt.array(bias)), exact_gelu(z + bias), tolerance, tolerance


def residual(jt, kernels, dtype, shape):
    x, (branch, exact), bias = normal(shape), rounded(normal(shape, seed=1), dtype), normal(shape[-1:], seed=2)
    return kernels.residual(*map(jt.array, (x, branch, bias))), x + exact + bias, 1e-6, 1e-6


def tokens(jt, kernels, dtype, n, l, w):
    (patches, exact), first, positions = (
        rounded(normal((n, l - 1, w)), dtype),
        normal((w,), seed=1),
        normal((l, w), seed=2),
    )
    exact = np.concatenate([np.broadcast_to(first, (n, 1, w)), exact], axis=1) + positions
    return kernels.tokens(*map(jt.array, (patches, first, positions))), exact, 1e-6, 1e-6


def attention(jt, kernels, dtype, n, l, w, heads, causal):
    (qkv, exact), bias = rounded(normal((n, l, 3 * w), 2), dtype), normal((3 * w,), seed=1)
    found = kernels.attention(jt.array(qkv), jt.array(bias), heads, causal)
    return found, exact_attention(exact + bias, heads, causal), 0, 2e-5 if dtype == "float32" else 4e-2


def far_attention(jt, kernels, dtype):
    qkv, exact = rounded(normal((1, 20, 192), 30), dtype)
    return (
        kernels.attention(jt.array(qkv), jt.array(np.zeros(192, np.float32)), 1, False),
        exact_attention(exact, 1, False),
        2e-3,
        2e-3 if dtype == "float32" else 0.5,
    )


CASES = {
    f"{function.__name__} {dtype} {arguments}": (function, dtype, *arguments)
    for dtype in DTYPES
    for function, sizes in (
        (layer_norm, [(shape, mean) for shape in WIDTHS for mean in (0, 100)]),
        (quick_gelu, [(shape, scale) for shape in WIDTHS for scale in (1, 40)]),
        (gelu, [(shape, scale) for shape in WIDTHS for scale in (1, 40)]),
        (residual, [(shape,) for shape in WIDTHS]),
        (tokens, [(2, 50, 128), (3, 5, 17)]),
        (attention, [(*size, causal) for size in ATTENTION for causal in (False, True)]),
        (far_attention, [()]),
    )
    for arguments in sizes
}


@pytest.fixture(scope="module")
def asked():
    """What each case's kernel gives, as a Var, what it should give, and how far off it may be."""
    runtime.use("cuda")
    jt = runtime.jittor()
    from jclip import kernels

    with jt.no_grad():
        made = {name: case[0](jt, kernels, *case[1:]) for name, case in CASES.items()}
        try:
            jt.sync([found for found, *_ in made.values()])
        except RuntimeError:
            pass  # each test says for itself
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_is_exact(asked, name):
    found, exact, rtol, atol = asked[name]
    found = found.numpy()
    assert found.shape == exact.shape
    np.testing.assert_allclose(found.astype(np.float64), exact, rtol=rtol, atol=atol)


def test_pixels_are_normalised_as_on_the_cpu():
    from jclip import kernels
    from jclip.preprocess import LEVELS, normalised

    rgb = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    with runtime.jittor().no_grad():
        np.testing.assert_array_equal(kernels.normalise(rgb, LEVELS).numpy(), normalised(rgb))


# ---- the towers ----

TEXTS = [
    "a dog",
    "a photo of a Shiba Dog, a type of dog.",
    "",
    "a satellite photograph of a car park in the rain, seen from very far above",
    "two squares",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Random weights with heads as wide as OpenAI's, and few layers."""
    a = Architecture(
        embed_dim=64,
        image_resolution=96,
        patch_size=16,
        vision_width=128,
        vision_layers=3,
        vision_heads=2,
        context_length=77,
        vocab_size=49408,
        text_width=192,
        text_layers=3,
        text_heads=3,
    )
    rng = np.random.default_rng(0)
    state = {
        name: ((name.endswith("weight") and len(shape) == 1) + rng.normal(0, 0.05, shape)).astype(np.float32)
        for name, shape in expected_shapes(a).items()
    }
    state["logit_scale"] = np.float32(np.log(100))
    path = tmp_path_factory.mktemp("weights") / "clip.pkl"
    with open(path, "wb") as file:
        weights.write(state, file)
    return path


@pytest.fixture(scope="module")
def encoded(clip):
    """encoded(device, precision) -> image features and text features, each computed once."""
    pictures, made = np.random.default_rng(1).integers(0, 256, (11, 96, 96, 3), np.uint8), {}

    def encoded(device, precision="float32"):
        if (device, precision) not in made:
            model, _ = jclip.load(clip, device, precision=precision)
            images = np.concatenate(
                [
                    of.rows
                    for of in features.image_features(model, range(len(pictures)), pictures.__getitem__, batch_size=4)
                ]
            )
            texts = np.empty((len(TEXTS), images.shape[1]), np.float32)
            for chosen, rows in features.text_features(model, TEXTS):
                texts[chosen] = rows
            made[device, precision] = images, texts
        return made[device, precision]

    return encoded


@pytest.mark.parametrize("tower", [0, 1], ids=["images", "texts"])
def test_a_tower_gives_what_it_gives_on_the_cpu(encoded, tower):
    found, expected = encoded("cuda")[tower], encoded("cpu")[tower]
    assert np.isfinite(found).all()
    assert (np.linalg.norm(found - expected, axis=1) < 1e-4).all()  # of unit norm


@pytest.mark.parametrize("tower", [0, 1], ids=["images", "texts"])
def test_half_precision_keeps_the_direction(encoded, tower):
    found, expected = encoded("cuda", "half")[tower], encoded("cpu")[tower]
    cosine = (found * expected).sum(axis=1)
    assert found.dtype == np.float32 and (cosine > 0.999).all(), cosine
    assert not np.array_equal(found, encoded("cuda")[tower])


def test_logits_are_those_of_the_cpu(clip):
    pixels = np.random.default_rng(2).standard_normal((3, 3, 96, 96)).astype(np.float32)
    logits = []
    for device in ("cuda", "cpu"):
        model, _ = jclip.load(clip, device)
        with runtime.jittor().no_grad():
            logits.append(model(runtime.jittor().array(pixels), jclip.tokenize(TEXTS))[0].numpy())
    np.testing.assert_allclose(*logits, atol=0.02)  # of cosines times 100


@pytest.mark.parametrize("precision, tolerance", [("float32", 1e-4), ("half", 0.03)])
def test_a_resnet_gives_what_openais_code_gives(precision, tolerance):
    stages = dict(np.load(GOLDEN / "resnet_stages.npz"))
    model, _ = jclip.load(GOLDEN / "resnet_weights.npz", "cuda", precision=precision)
    with runtime.jittor().no_grad():
        found = model.encode_image(stages["image"]).numpy().astype(np.float64)
    assert relative(found, stages["attnpool"]) < tolerance


def test_gradients_flow_to_the_pixels_as_on_the_cpu(clip):
    pixels, found = np.random.default_rng(3).standard_normal((2, 3, 96, 96), np.float32), []
    for device in ("cuda", "cpu"):
        model, _ = jclip.load(clip, device)
        jt = runtime.jittor()
        image = jt.array(pixels)
        features = model.encode_image(image)
        found.append(jt.grad((features * features).sum(), image).numpy())
    assert np.abs(found[1]).max() > 0
    assert relative(*found) < 1e-4


# ---- methods ----


def trained(method, val=True, shots=1, **settings):
    """(adapter, choices) of CUDA and of the CPU."""
    task = make_overlapping_task(shots=shots)
    return [
        train(method, task.text, task.support, task.val if val else None, Settings(device=device, **settings))
        for device in ("cuda", "cpu")
    ]


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("epochs", [1, 5])
def test_tip_f_learns_the_keys_of_the_cpu(epochs):
    # nothing to choose by: the keys of the last epoch
    (found, _), (expected, _) = trained("tip-f", val=False, epochs=epochs)
    support = make_overlapping_task().support
    start = build_cache(support.features, support.labels, 60).keys
    assert relative(expected.keys, start) > 1e-3
    assert relative(found.keys, expected.keys) < 1e-4


def test_tip_f_chooses_as_well_as_on_the_cpu():
    (found, chosen), (expected, chosen_there) = trained("tip-f", shots=3, epochs=5)
    assert abs(chosen["top1"] - chosen_there["top1"]) <= 0.01
    rows = make_overlapping_task(shots=3).val.features
    same = predict_logits(found, rows).argmax(axis=1) == predict_logits(expected, rows).argmax(axis=1)
    assert same.mean() >= 0.99


@pytest.mark.parametrize("method", ["taskres", "clap"])
def test_other_methods_learn_what_they_learn_on_the_cpu(method):
    (found, _), (expected, _) = trained(method)
    text = make_overlapping_task().text
    assert relative(expected.weight, text.scale * text.features) > 1e-3
    assert relative(found.weight, expected.weight) < 1e-3


def test_the_default_method_adds_the_cache_that_it_adds_on_the_cpu(monkeypatch):
    """The linear part is numpy's; the keys are fine-tuned by Jittor. Here a cache is always added."""
    monkeypatch.setattr(cache._Gains, "best", lambda self: (cache.SCORED_EPOCHS[-1], float(cache.ALPHAS[-1])))
    (found, chosen), (expected, chosen_there) = trained("blend", shots=3)
    start = build_cache(make_overlapping_task(shots=3).support.features, np.arange(60).repeat(3), 60).keys
    assert relative(expected.keys, start) > 1e-3
    assert relative(found.keys, expected.keys) < 1e-4
    rows = make_overlapping_task(shots=3).val.features
    np.testing.assert_allclose(predict_logits(found, rows), predict_logits(expected, rows), atol=0.01)


# ---- the scripts ----


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The demo's data set."""
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run([sys.executable, "-m", "demo.make_data", folder / "Dataset"], cwd=PROJECT, check=True)
    return folder


def script(name, *arguments, cwd, check=True):
    done = subprocess.run(
        [sys.executable, str(PROJECT / name), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def results(world):
    """results(device, precision) -> the five labels of each test photograph by its name, and extract_feature.py's
    output; each once."""
    made = {}

    def extract(device, precision):
        return script(
            "extract_feature.py",
            *DEMO,
            "--device",
            device,
            "--precision",
            precision,
            "--output",
            f"{device}-{precision}",
            cwd=world,
        )

    def results(device, precision="float32"):
        if (device, precision) not in made:
            output, result = f"{device}-{precision}", world / f"{device}-{precision}.txt"
            extract(device, precision)
            script("train_adapter.py", "--method", "tip-f", "--device", device, "--output", output, cwd=world)
            script(
                "predict.py",
                "--device",
                device,
                "--precision",
                precision,
                "--output",
                output,
                "--result",
                result,
                cwd=world,
            )
            made[device, precision] = {line.split()[0]: line.split()[1:] for line in result.read_text().splitlines()}
        return made[device, precision]

    results.again = extract
    return results


def moved(found, expected):
    """Names whose likeliest class is another, and names of which any of the five is."""
    assert found.keys() == expected.keys() and len(found) == 480
    return [name for name in found if found[name][0] != expected[name][0]], [
        name for name in found if found[name] != expected[name]
    ]


def test_the_demo_gives_the_classes_of_the_cpu(results):
    first, any_of_five = moved(results("cuda"), results("cpu"))
    if any_of_five:
        warnings.warn(
            f"{len(any_of_five)} of 480 photographs have another order of the five classes on CUDA", stacklevel=1
        )
    assert not first


def test_half_precision_hardly_changes_the_demo(results):
    first, any_of_five = moved(results("cuda", "half"), results("cpu"))
    warnings.warn(
        f"half precision: {len(first)} of 480 photographs have another likeliest class, {len(any_of_five)} another "
        f"order of the five",
        stacklevel=1,
    )
    assert len(first) <= 3


def test_a_second_run_on_cuda_encodes_nothing(results):
    results("cuda")
    assert "encoded 0, kept" in results.again("cuda", "float32").stdout


def test_auto_takes_the_gpu_and_says_so_in_one_line():
    code = "import logging; logging.basicConfig(level=logging.INFO, format='%(message)s')\n"
    code += "from jclip import runtime; print(runtime.use())"
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "cuda", done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(r"Jittor [\d.]+ computes on (?!the CPU)", line)


# ---- memory ----

HOG = f"""
import ctypes, sys
from ctypes import byref
driver, device, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_void_p()
free, total, held = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_uint64()
for code in (driver.cuInit(0), driver.cuDeviceGet(byref(device), 0),
             driver.cuDevicePrimaryCtxRetain(byref(context), device),
             driver.cuCtxSetCurrent(context), driver.cuMemGetInfo_v2(byref(free), byref(total)),
             driver.cuMemAlloc_v2(byref(held), ctypes.c_size_t(free.value - {LEFT}))):
    assert code == 0, code
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def full():
    """While the test runs, the GPU has little memory left."""
    runtime.jittor().gc()
    with subprocess.Popen([sys.executable, "-c", HOG], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as hog:
        try:
            assert hog.stdout.readline() == "holds\n"
            yield
        finally:
            hog.stdin.close()
            hog.wait(timeout=60)


@pytest.mark.parametrize(
    "size", [200_000, 1_000_000_000], ids=["more than the GPU has left", "more than any machine has"]
)
def test_a_batch_too_large_is_one_line(world, full, size):
    done = script(
        "extract_feature.py",
        *DEMO,
        "--device",
        "cuda",
        "--output",
        f"large-{size}",
        "--batch-size",
        size,
        cwd=world,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "--batch-size" in error and done.stderr.endswith(f"{error}\n")
