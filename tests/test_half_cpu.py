"""Half precision on the CPU: bfloat16 factors of matrix products.

Each test runs with every kernel of half.h that this CPU has the instructions for, and with the plain one.
"""

import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import bfloat16_on_cpu
import numpy as np
import pytest
from conftest import CLASSES, GOLDEN, PROJECT
from test_kernels import WIDTHS, normal
from test_resume import BATCH, DRIVER, OUTPUTS, ROWS_PER_PART, encoded_rows

import jclip
from jclip import runtime
from jclip.features import unit

SMALLEST_COSINE, LARGEST_ERROR = 0.9999, 1e-2  # of a row beside that of float32
FLAGS = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()


def needs(flag):
    return pytest.mark.skipif(flag not in FLAGS, reason=f"this CPU lacks {flag}; run where /proc/cpuinfo has it")


OF_THE_CPU = [
    pytest.param("Avx512", marks=needs("avx512_bf16")),
    pytest.param("Amx", marks=needs("amx_bf16")),
    pytest.param("", marks=needs("avx512_bf16"), id="fastest"),  # what users get
]
KERNELS = ["Plain", *OF_THE_CPU]


@pytest.fixture(params=KERNELS)
def half(request, jt, monkeypatch):
    """The kernel that computes bfloat16 products in this process."""
    bfloat16_on_cpu.install(request.param, monkeypatch.setattr)
    return request.param


def check_fidelity(actual, expected):
    """Compare rows with those of float32, and return the least cosine and the largest relative error of a row."""
    cosine = (unit(actual).astype(np.float64) * unit(expected)).sum(-1).min()
    error = (np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()
    assert cosine >= SMALLEST_COSINE and error <= LARGEST_ERROR, (cosine, error)
    return cosine, error


def rounded(x):
    """Round to bfloat16, to nearest and to even between two, by float64."""
    mantissa, exponent = np.frexp(np.asarray(x, np.float64))
    return np.ldexp(np.rint(mantissa * 256), exponent - 8).astype(np.float32)


def as_bfloat16(jt, x):
    from jclip import kernels

    return kernels.bfloat16(jt.array(x))


def test_numbers_are_rounded_to_nearest_and_to_even_between_two(jt):
    ties = 1 + np.arange(64, dtype=np.float32) / 256
    x = np.concatenate([ties, -ties, np.nextafter(ties, 9), np.nextafter(ties, 0), normal((10_001,), 1e4), [0, -0.0]])
    x = x.astype(np.float32)
    np.testing.assert_array_equal(as_bfloat16(jt, x).float32().numpy(), rounded(x))


def test_what_is_no_number_stays_none(jt):
    bits = np.array([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000], np.uint32)
    found = as_bfloat16(jt, np.tile(bits, 5).view(np.float32)).float32().numpy()
    np.testing.assert_array_equal(found, np.tile([np.nan] * 4 + [np.inf, -np.inf], 5))


@pytest.mark.parametrize("shape", WIDTHS)
def test_kernels_write_bfloat16_themselves(jt, shape):
    from jclip import kernels

    x, bias = jt.array(normal(shape, 3)), jt.array(normal(shape[-1:], seed=1))
    images = jt.array(normal((2, 3, 12, 12)))
    for kernel, *arguments in (
        (kernels.patches, images, 4),
        (kernels.layer_norm, x, bias, bias),
        (kernels.quick_gelu, x, bias),
        (kernels.gelu, x, bias),
    ):
        with jt.no_grad():
            half, exact = (kernel(*arguments, dtype=dtype) for dtype in ("bfloat16", "float32"))
            assert (str(half.dtype), str(exact.dtype)) == ("bfloat16", "float32")
            np.testing.assert_allclose(half.float32().numpy(), exact.numpy(), rtol=2**-8, atol=1e-6)
        assert str(kernel(*arguments, dtype="bfloat16").dtype) == "float32"  # plain Jittor, where gradients are wanted


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "n, l, w, heads",
    [(3, 50, 128, 2), (2, 77, 64, 1), (1, 9, 40, 5), (1, 32, 39, 3), (2, 31, 5, 1), (2, 33, 96, 2), (1, 1, 32, 1)],
)
def test_attention_is_that_of_rounded_factors(jt, half, n, l, w, heads, causal):
    from jclip import products

    x, matrix, bias = normal((n, l, w)), normal((3 * w, w), w**-0.5), normal((3 * w,), seed=1)
    with jt.no_grad():
        found = products.attention(jt.array(x), as_bfloat16(jt, matrix), jt.array(bias), heads, causal)
    assert str(found.dtype) == "bfloat16"
    qkv = rounded(rounded(x) @ rounded(matrix).T.astype(np.float64) + bias)
    q, k, v = (part.reshape(n, l, heads, -1).swapaxes(1, 2) for part in np.split(qkv, 3, axis=-1))
    scores = q @ k.swapaxes(2, 3) * (w / heads) ** -0.5
    scores[..., ~np.tri(l, dtype=bool) & causal] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = rounded(shares / shares.sum(-1, keepdims=True)) @ v
    expected = expected.swapaxes(1, 2).reshape(n, l, w)
    # a factor that lies between two bfloat16 numbers may be rounded the other way
    np.testing.assert_allclose(found.float32().numpy(), expected, rtol=2**-7, atol=2**-7)


# ---- products ----


SIZES = [(7, 33, 50), (1, 64, 64), (130, 768, 300), (24, 100, 1), (3, 1, 40), (1600, 3072, 96), (33, 588, 1024)]


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("n, a, b", SIZES)
def test_products_are_exact_for_any_number_of_rows(jt, half, n, a, b, transposed):
    from jclip.products import matmul

    matrix = rounded(normal((b, a)))
    var = as_bfloat16(jt, matrix if transposed else matrix.T.copy())
    with jt.no_grad():
        for rows in (n, 2 * n + 1, n):
            x = normal((2, rows, a), seed=rows)
            found = matmul(jt.array(x), var, transposed)
            assert str(found.dtype) == "float32"
            np.testing.assert_allclose(found.numpy(), rounded(x) @ matrix.T, atol=1e-5 * a**0.5)


@pytest.mark.parametrize("n, a, b", SIZES)
def test_what_follows_a_product_is_computed_with_it(jt, half, n, a, b):
    from jclip import kernels
    from jclip.products import Linear

    linear = Linear(a, b, "bfloat16")
    linear.weight.assign(as_bfloat16(jt, normal((b, a)) / a**0.5))
    linear.bias.assign(jt.array(normal((b,), seed=1)))
    x, stream = jt.array(normal((n, 2, a))), jt.array(normal((n, 2, b), seed=2))
    with jt.no_grad():
        product = linear(x)
        expected = kernels.residual(stream, product, linear.bias).numpy()
        np.testing.assert_allclose(linear.added(stream, x).numpy(), expected, rtol=1e-5, atol=1e-5)
        for name, activation in kernels.ACTIVATIONS.items():
            found = linear.activated(x, name)
            assert str(found.dtype) == "bfloat16"
            expected = activation(product, linear.bias, "bfloat16").float32().numpy()
            np.testing.assert_allclose(found.float32().numpy(), expected, rtol=2**-7)


def test_a_matrix_is_packed_once_and_again_when_it_has_changed(jt, half, monkeypatch):
    from jclip import kernels
    from jclip.products import matmul

    packed, run = [], kernels.half
    monkeypatch.setattr(kernels, "half", lambda *arguments: packed.append("pack(" in arguments[2]) or run(*arguments))
    x, first, second = (rounded(normal(shape, seed=i)) for i, shape in enumerate([(5, 40), (30, 40), (30, 40)]))
    matrix = as_bfloat16(jt, first)
    with jt.no_grad():
        for expected in (first, first, second, second, 2 * second):
            if expected is second and sum(packed) == 1:
                matrix.assign(as_bfloat16(jt, second))
            elif expected is not first and expected is not second:
                matrix.update(matrix * 2)
            np.testing.assert_allclose(matmul(jt.array(x), matrix).numpy(), x @ expected.T, atol=1e-4)
    assert sum(packed) == 3 and len(packed) == 8


def test_a_square_matrix_is_not_taken_for_its_transpose(jt, half):
    from jclip.products import matmul

    x, matrix = rounded(normal((5, 40))), rounded(normal((40, 40)))
    var = as_bfloat16(jt, matrix)
    with jt.no_grad():
        for transposed in (True, False, True):
            expected = x @ (matrix.T if transposed else matrix)
            np.testing.assert_allclose(matmul(jt.array(x), var, transposed).numpy(), expected, atol=1e-4)


def test_where_gradients_are_wanted_nothing_is_packed(jt, half):
    from jclip.products import matmul

    x, matrix = jt.array(normal((5, 40))), as_bfloat16(jt, normal((30, 40)))
    gradient = jt.grad(matmul(x, matrix).sum(), x).numpy()
    np.testing.assert_allclose(gradient, np.tile(rounded(normal((30, 40))).sum(0), (5, 1)), atol=1e-4)
    assert not hasattr(matrix, "packed")


def test_threads_share_packed_matrices(jt, half):
    model = jclip.load(GOLDEN / "clip_weights.npz", "cpu", precision="half")[0]
    found = {}
    threads = [threading.Thread(target=lambda n=n: found.update({n: encode(jt, model, n)})) for n in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in (1, 2, 3, 4):
        for one, again in zip(found[n], encode(jt, model, n)):
            np.testing.assert_array_equal(one, again)


def encode(jt, model, n):
    """Return the features of n random images and n texts."""
    side = model.visual.input_resolution
    texts = np.random.default_rng(n).integers(1, 290, (n, 9), np.int32)
    texts[:, 8] = 299  # the highest id ends a text
    with jt.no_grad():
        return model.encode_image(normal((n, 3, side, side), seed=n)).numpy(), model.encode_text(texts).numpy()


# ---- models in half precision ----


@pytest.mark.parametrize("source", ["clip_weights.npz", "open_clip"])
def test_features_in_half_are_close_to_those_in_float32(jt, half, source):
    exact, model = (jclip.load(GOLDEN / source, "cpu", precision=precision)[0] for precision in ("float32", "half"))
    assert model.dtype == "bfloat16" == str(model.visual.transformer.resblocks[0].mlp.c_fc.weight.dtype)
    for actual, expected in zip(encode(jt, model, 8), encode(jt, exact, 8)):
        assert actual.dtype == np.float32 and (actual != expected).any()
        check_fidelity(actual, expected)


@pytest.mark.slow
def test_features_of_vit_b_32_are_close_to_those_in_float32(jt, half):
    """Random weights; the figures are those of docs/parity.md; run with -s to see them."""
    from jclip.architecture import Architecture, expected_shapes
    from jclip.model import build_model

    a = Architecture(
        embed_dim=512,
        image_resolution=224,
        patch_size=32,
        vision_width=768,
        vision_layers=12,
        vision_heads=12,
        context_length=77,
        vocab_size=300,
        text_width=512,
        text_layers=12,
        text_heads=8,
    )
    rng = np.random.default_rng(0)
    state = {name: initial(name, shape, a, rng) for name, shape in expected_shapes(a).items()}
    exact, model = (build_model(dict(state), precision) for precision in ("float32", "half"))
    for actual, expected in zip(encode(jt, model, 8), encode(jt, exact, 8)):
        print(check_fidelity(actual, expected))


def initial(name, shape, a, rng):
    """Draw a parameter as OpenAI's code does before training, but for biases, which are not zero."""
    width = a.vision_width if name.startswith("visual") else a.text_width
    scale = 0.02 if name == "token_embedding.weight" or len(shape) < 2 else width**-0.5
    if name.endswith(("out_proj.weight", "c_proj.weight")):
        scale *= (2 * a.vision_layers) ** -0.5
    if name.endswith("c_fc.weight"):
        scale *= 2**-0.5
    mean = 1 if "ln_" in name and name.endswith("weight") else 0
    return rng.normal(mean, scale, shape).astype(np.float32)


def test_rows_depend_neither_on_their_index_nor_on_the_others(jt, half):
    model = jclip.load(PROJECT / "demo/clip.npz", "cpu", precision="half")[0]
    side = model.visual.input_resolution
    images = normal((32, 3, side, side))
    order = np.random.default_rng(0).permutation(32)
    others = np.concatenate([images[:3], normal((29, 3, side, side), seed=1)])
    with jt.no_grad():
        rows, permuted, beside = (model.encode_image(x).numpy() for x in (images, images[order], others))
    np.testing.assert_array_equal(permuted, rows[order])
    np.testing.assert_array_equal(beside[:3], rows[:3])


def test_a_model_in_half_becomes_float32_by_float(jt, half):
    model = jclip.load(GOLDEN / "clip_weights.npz", "cpu", precision="half")[0]
    assert model.half() is model.bfloat16() is model.to(jt.bfloat16) is model.to("cpu") is model
    with pytest.raises(jclip.ClipError, match="computes in bfloat16, which cuda does not"):
        model.to("cuda")
    before = encode(jt, model, 3)
    assert model.float().dtype == "float32" and model.visual.proj.packed == (None, None)
    exact = jclip.load(GOLDEN / "clip_weights.npz", "cpu")[0]
    np.testing.assert_array_equal(model.visual.proj.numpy(), rounded(exact.visual.proj.numpy()))
    for widened, actual in zip(encode(jt, model, 3), before):
        check_fidelity(widened, actual)
    for call in (model.half, model.bfloat16):
        with pytest.raises(jclip.ClipError, match="float32"):
            call()


def test_gradients_pass_through_a_model_in_half(jt, half):
    model = jclip.load(GOLDEN / "clip_weights.npz", "cpu", precision="half")[0]
    exact = jclip.load(GOLDEN / "clip_weights.npz", "cpu")[0]
    for name, parameter in exact.state_dict().items():
        if str(model.state_dict()[name].dtype) == "bfloat16":
            parameter.assign(jt.array(rounded(parameter.numpy())))
    images = normal((2, 3, 64, 64))
    gradients = []
    for each in (model, exact):
        wanted = [each.visual.class_embedding, each.visual.transformer.resblocks[0].mlp.c_fc.weight]
        loss = each.encode_image(images).sqr().sum()
        gradients.append([gradient.float32().numpy() for gradient in jt.grad(loss, wanted)])
    for actual, expected in zip(*gradients):
        np.testing.assert_allclose(actual, expected, rtol=2**-6, atol=1e-3 * np.abs(expected).max())
        assert np.abs(expected).max() > 0


def test_resnets_have_no_half_on_the_cpu(jt, half):
    with pytest.raises(
        jclip.ClipError, match="ResNets have no half precision on the CPU; run with --precision float32"
    ):
        jclip.load(GOLDEN / "resnet_weights.npz", "cpu", precision="half")


def test_a_model_of_the_cpu_says_so_on_another_device(jt, half, monkeypatch):
    from jclip import model as towers

    model = jclip.load(GOLDEN / "clip_weights.npz", "cpu", precision="half")[0]
    monkeypatch.setattr(towers, "_device", lambda: "cuda")
    for call in (lambda: encode(jt, model, 1), lambda: model.encode_text(np.array([[1, 2, 299]]))):
        with pytest.raises(jclip.ClipError, match="bfloat16, which cuda does not; load it again for cuda"):
            call()


without_bfloat16 = pytest.mark.skipif(runtime.has_bfloat16(), reason="this CPU has AVX512-BF16")


@without_bfloat16
def test_where_there_are_no_instructions_the_model_is_not_loaded(jt, monkeypatch):
    with pytest.raises(
        jclip.ClipError, match="a CPU with AVX512-BF16, which this CPU lacks; run with --precision float"
    ):
        jclip.load(GOLDEN / "clip_weights.npz", "cpu", precision="half")
    monkeypatch.setattr(runtime, "has_bfloat16", lambda: True)  # the compiler knows better
    with pytest.raises(
        jclip.ClipError, match="^--precision half: the C.. compiler makes no code for bfloat16 .*float32$"
    ):
        jclip.load(GOLDEN / "clip_weights.npz", "cpu", precision="half")


@without_bfloat16
def test_a_command_on_a_cpu_without_the_instructions_says_so_in_one_line(work, run):
    done = run("extract_feature.py", "--device", "cpu", "--precision", "half", cwd=work, check=False)
    message = "error: --precision half needs CUDA or a CPU with AVX512-BF16, which this CPU lacks; run with --precision"
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == f"{message} float32" and not done.stdout
    assert "Traceback" not in done.stderr and not list((work / "output").glob("*.npz"))


@pytest.mark.parametrize("half", OF_THE_CPU, indirect=True)
def test_the_towers_are_those_of_plain_products(jt, half, monkeypatch):
    for source in ("clip_weights.npz", "open_clip"):
        model = jclip.load(GOLDEN / source, "cpu", precision="half")[0]
        found = encode(jt, model, 8)
        with monkeypatch.context() as patch:
            bfloat16_on_cpu.install("Plain", patch.setattr)
            for actual, expected in zip(found, encode(jt, model, 8)):
                check_fidelity(actual, expected)  # another order of additions may round the next factors otherwise


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions are those of x86-64")
@pytest.mark.parametrize("processor", ["cooperlake", "sapphirerapids"])
def test_the_kernels_of_other_processors_are_compiled(processor, tmp_path):
    source = '#include "kernels.h"\n#include "half.h"\nusing namespace clip;\n'
    for kernel in ("Avx512", "Amx") if processor == "sapphirerapids" else ("Avx512",):
        source += f"template void half_attention<{kernel}>(const Bfloat16*, Bfloat16*, Int, Int, Int, Int, bool);\n"
        source += f"template void multiply<{kernel}>(const Bfloat16*, const Bfloat16*, Int, Int, Int, Stored);\n"
    options = f"-march={processor}", "-fsyntax-only"
    if compiled("", tmp_path, *options).returncode:
        pytest.skip(f"this g++ does not know {processor}")
    done = compiled(source, tmp_path, *options)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_amx_is_right_on_emulated_tiles(tmp_path):
    source = (PROJECT / "tests" / "amx_tiles.cc").read_text()
    done = compiled(source, tmp_path, "-O1", "-o", tmp_path / "tiles")
    assert done.returncode == 0, done.stderr
    done = subprocess.run([tmp_path / "tiles"], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2**-6  # an ulp of bfloat16 in the result of an attention


def compiled(source, folder, *options):
    """Compile C++ that includes the files of jclip/."""
    (folder / "source.cc").write_text(source)
    command = ["g++", "-std=c++14", "-fopenmp", "-Wall", "-Wno-psabi", "-I", PROJECT / "jclip", *options]
    return subprocess.run([*command, folder / "source.cc"], capture_output=True, text=True)


# ---- the commands ----


@pytest.fixture(params=KERNELS)
def command(request, work):
    """Give command(script, *arguments), which runs it on the CPU in half, and returns the CompletedProcess."""
    install = f"import bfloat16_on_cpu; bfloat16_on_cpu.install({request.param!r})\n"

    def run(code, *arguments, precision="half", check=True):
        done = subprocess.run(
            [sys.executable, "-c", install + code, *map(str, arguments), "--device", "cpu", "--precision", precision],
            cwd=work,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "tests")])},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    run.extract = lambda moment=-1, number=0, **more: run(
        DRIVER, moment, number, work / "encoded.log", "--batch-size", BATCH, **more
    )
    return run


def test_rows_of_two_precisions_are_never_mixed_and_a_stopped_run_gives_the_same_bytes(work, command):
    done = command.extract(precision="float32")
    total, files = encoded_rows(work), read_outputs(work)
    assert ", float32)" in done.stderr
    done = command.extract()
    assert ", half)" in done.stderr and encoded_rows(work) == total
    half = read_outputs(work)
    assert all(half[name] != files[name] for name in OUTPUTS)
    for name in OUTPUTS:
        assert json.loads(str(np.load(work / "output" / name)["meta"]))["precision"] == "half"
    check_fidelity(features(half, work), features(files, work))
    command.extract(precision="float32")
    assert (encoded_rows(work), read_outputs(work)) == (0, files)

    for path in (work / "output").rglob("*.np[yz]"):
        path.unlink()
    command.extract(moment=8, number=9, check=False)
    assert 0 < encoded_rows(work) < total
    command.extract()
    assert 0 < encoded_rows(work) < total + ROWS_PER_PART and read_outputs(work) == half


def read_outputs(work):
    return {name: (work / "output" / name).read_bytes() for name in OUTPUTS}


def features(files, work):
    """Return the test rows among the files of `read_outputs`."""
    path = work / "read.npz"
    path.write_bytes(files["test.npz"])
    return np.load(path)["features"]


def test_training_and_prediction_follow_as_usual(work, command, run):
    command.extract()
    run("train_adapter.py", "--method", "tip", cwd=work)
    done = command("import predict, sys; sys.exit(predict.main(sys.argv[1:]))", "Dataset/TestSetB/image_1.jpg")
    assert any(name in done.stdout for name in CLASSES) and ", half)" in done.stderr


@pytest.mark.slow
def test_the_demo_in_half_answers_as_in_float32(jt, half, tmp_path):
    """The figures are those of docs/parity.md; run with -s to see them."""
    from demo import make_data
    from fewshot import prompts
    from fewshot.encoder import Encoder

    assert make_data.main([str(tmp_path)]) == 0
    classes = [line.split()[0] for line in (tmp_path / "classes_b.txt").read_text().splitlines()]
    photos = sorted((tmp_path / "TestSetB").rglob("*.jpg"))
    labels = np.array([classes.index(path.parent.name) for path in photos])
    sentences = prompts.read(classes, PROJECT / "demo/prompts").sentences
    rows, texts, logits = {}, {}, {}
    for precision in ("float32", "half"):
        encoder = Encoder.load(PROJECT / "demo/clip.npz", "cpu", precision=precision)
        rows[precision], texts[precision] = encoder.encode_photos(photos).rows, encoder.encode_prompts(sentences)
        logits[precision] = rows[precision] @ texts[precision].T
    best = {precision: values.argmax(1) for precision, values in logits.items()}
    right = {precision: int((found == labels).sum()) for precision, found in best.items()}
    # the tiny CLIP gives some classes the same text feature; between these, the last bit decides
    second, first = np.sort(logits["float32"])[:, -2:].T
    moved = best["float32"] != best["half"]
    print("photographs", check_fidelity(rows["half"], rows["float32"]))
    print("prompts", check_fidelity(texts["half"], texts["float32"]))
    print(right, "moved:", moved.sum(), "of these no ties:", moved[first - second > 1e-5].sum())
    assert len(photos) == 480 and (first - second > 1e-5).sum() > 400
    assert moved[first - second > 1e-5].sum() <= 3 and abs(right["half"] - right["float32"]) <= 3
