"""OpenAI's ResNets: each stage is that of OpenAI's own code (golden/record_clip.py), all else works as with ViTs."""

import shutil

import numpy as np
import pytest
from conftest import CLASSES, GOLDEN, draw
from test_clip import TOLERANCE, error

import jclip
from fewshot import artifacts
from jclip import features, resnet_weights, weights
from jclip.architecture import Architecture, architecture_of, expected_shapes
from jclip.preprocess import normalised

TEXT = dict(context_length=77, vocab_size=49408)


def sizes(embed_dim, resolution, blocks, width, text_width, text_layers=12, **text):
    return Architecture(
        embed_dim=embed_dim,
        image_resolution=resolution,
        patch_size=32,
        vision_width=width,
        vision_layers=blocks,
        vision_heads=width * 32 // 64,
        text_width=text_width,
        text_layers=text_layers,
        text_heads=text_width // 64,
        **{**TEXT, **text},
    )


# with the number of parameters, those of a batch norm without its statistics
OFFICIAL = {
    "RN50": (sizes(1024, 224, (3, 4, 6, 3), 64, 512), 102_007_137),
    "RN101": (sizes(512, 224, (3, 4, 23, 3), 64, 512), 119_688_033),
    "RN50x4": (sizes(640, 288, (4, 6, 10, 6), 80, 640), 178_300_601),
    "RN50x16": (sizes(768, 384, (6, 8, 18, 8), 96, 768), 290_979_217),
    "RN50x64": (sizes(1024, 448, (3, 15, 36, 10), 128, 1024), 623_258_305),
}


@pytest.fixture(scope="module")
def model(jt):
    return jclip.load(GOLDEN / "resnet_weights.npz", "cpu")[0]


@pytest.fixture(scope="module")
def stages():
    return dict(np.load(GOLDEN / "resnet_stages.npz"))


@pytest.fixture
def state():
    return dict(np.load(GOLDEN / "resnet_weights.npz"))


def rows(x):
    """One row an image."""
    return x.reshape(len(x), -1)


@pytest.mark.parametrize(
    "stage, before",
    [*zip(("layer1", "layer2", "layer3", "layer4"), ("avgpool", "layer1", "layer2", "layer3")), ("attnpool", "layer4")],
)
@pytest.mark.parametrize("with_gradients", [False, True])
def test_each_stage_is_openais(jt, model, stages, stage, before, with_gradients):
    with jt.enable_grad() if with_gradients else jt.no_grad():
        actual = getattr(model.visual, stage)(jt.array(stages[before])).numpy()
    assert actual.shape == stages[stage].shape
    assert error(rows(actual), rows(stages[stage])) < TOLERANCE


@pytest.mark.parametrize("with_gradients", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_features_are_openais(jt, model, stages, with_gradients, n):
    """Without gradients, oneDNN computes them."""
    with jt.enable_grad() if with_gradients else jt.no_grad():
        actual = model.encode_image(jt.array(stages["image"][:n])).numpy()
    assert actual.dtype == np.float32
    assert error(actual, stages["attnpool"][:n]) < TOLERANCE


def test_without_onednn_features_are_the_same(jt, model, stages, monkeypatch):
    monkeypatch.setattr(jt.compile_extern, "mkl_ops", None)
    with jt.no_grad():
        actual = model.encode_image(jt.array(stages["image"])).numpy()
    assert error(actual, stages["attnpool"]) < TOLERANCE


@pytest.mark.parametrize("batch_size", [5, 16])
def test_the_bits_of_a_row_depend_on_its_image_alone(model, batch_size):
    """So a resumed run, in which other photographs share a batch, writes the same bytes."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size + 3, 96, 96, 3), np.uint8)

    def encode(order):
        batches = features.image_features(model, order, images.__getitem__, batch_size)
        return np.concatenate([batch.rows for batch in batches])

    order = rng.permutation(len(images))
    np.testing.assert_array_equal(encode(range(len(images)))[order], encode(order))


def test_a_large_batch_is_computed_in_parts_that_fit_into_the_cache(jt, model):
    pixels = np.random.default_rng(0).standard_normal((23, 3, 96, 96), np.float32)  # no part but 1 divides 23
    with jt.no_grad():
        together = model.encode_image(pixels).numpy()
        apart = np.concatenate([model.encode_image(pixels[i : i + 8]).numpy() for i in (0, 8, 16)])
    assert error(together, apart) < TOLERANCE


def test_gradients_are_openais(jt, model, stages):
    """The bias of a batch norm has the gradient of the bias of the convolution that it became a part of."""
    image = jt.array(stages["image"])
    parameters = {name: value for name, value in model.visual.state_dict().items() if name.endswith(".bias")}
    norms = {name: norm for name, norm, _ in resnet_weights.convolutions(4, (1, 2, 1, 1))}
    gradients = jt.grad(model.encode_image(image).sum(), [image, *parameters.values()])
    for name, gradient in zip(("image", *parameters), gradients):
        layer, _, kind = name.rpartition(".")
        expected = stages[f"gradient.{norms.get(layer, layer)}.{kind}" if layer else "gradient.image"]
        largest = np.abs(expected).max() if "k_proj" not in name else 1  # the bias of the keys changes nothing
        np.testing.assert_allclose(gradient.numpy(), expected, atol=1e-4 * largest, err_msg=name)


def test_gradients_reach_every_parameter(jt, model, stages):
    parameters = {name: value for name, value in model.visual.state_dict().items() if "k_proj.bias" not in name}
    gradients = jt.grad(model.encode_image(jt.array(stages["image"])).sqr().sum(), list(parameters.values()))
    assert [name for name, g in zip(parameters, gradients) if not np.abs(g.numpy()).max() > 1e-4] == []


def test_batch_norms_become_a_part_of_the_convolutions(state):
    """Exactly, but for one rounding to float32."""
    a = architecture_of(weights.read(GOLDEN / "resnet_weights.npz"))
    folded = weights.read(GOLDEN / "resnet_weights.npz")
    names = resnet_weights.folded(set(folded), a.vision_width, a.vision_layers)
    resnet_weights.fold(folded, a.vision_width, a.vision_layers)
    assert set(folded) == names and not any("bn" in name or "running" in name for name in names)
    norm = {name: state[f"visual.layer2.1.bn2.{name}"].astype(np.float64) for name in resnet_weights.NORM}
    assert min(np.ptp(value) for value in norm.values()) > 0.01
    x = np.random.default_rng(0).standard_normal((8 * 9, 5))
    convolution = "visual.layer2.1.conv2"
    before = state[f"{convolution}.weight"].astype(np.float64).reshape(8, -1) @ x
    scaled = (before.T - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
    after = (folded[f"{convolution}.weight"].astype(np.float64).reshape(8, -1) @ x).T + folded[f"{convolution}.bias"]
    np.testing.assert_allclose(after, scaled, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_official_sizes_are_recognised(name):
    a, parameters = OFFICIAL[name]
    shapes = expected_shapes(a)
    state = {tensor: np.broadcast_to(np.float16(0), shape) for tensor, shape in shapes.items()}
    assert architecture_of(state) == a
    statistics = sum(np.prod(shape) for tensor, shape in shapes.items() if ".running_" in tensor)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) - statistics == parameters
    assert f"ResNet of {'-'.join(map(str, a.vision_layers))} blocks" in str(a) and str(a.embed_dim) in str(a)


def write(path, state):
    with open(path, "wb") as file:
        np.savez(file, **state)
    return path


def test_each_tensor_is_needed_in_its_shape(tmp_path, state):
    read = weights.read(GOLDEN / "resnet_weights.npz")
    assert set(state) - set(read) == {name for name in state if name.endswith("num_batches_tracked")} != set()
    for name in read:
        others = {other: value for other, value in state.items() if other != name}
        for damaged in (others, {**others, name: np.zeros((*read[name].shape, 2), np.float32)}):
            with pytest.raises(jclip.ClipError) as raised:
                weights.read(write(tmp_path / "w.npz", damaged))
            assert (
                name in str(raised.value) and "\n" not in str(raised.value) and "no CLIP with" not in str(raised.value)
            )


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("visual.bn2.running_var", np.float32([1, -1]), "negative variance: visual.bn2.running_var"),
        ("visual.bn2.running_var", np.float32([1, np.nan]), "NaN or infinite: visual.bn2.running_var"),
        ("visual.layer5.0.conv1.weight", np.ones((4, 4, 1, 1), np.float32), "extra: visual.layer5.0.conv1.weight"),
        ("visual.layer2.2.bn1.bias", np.ones(8, np.float32), "missing: .*visual.layer2.2.conv1.weight"),
        ("visual.attnpool.positional_embedding", np.ones((9, 128), np.float32), "misshapen: .*positional_embedding"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, state, name, value, message):
    with pytest.raises(jclip.ClipError, match=message):
        weights.read(write(tmp_path / "w.npz", {**state, name: value}))


def test_convert_weights_writes_what_reads_as_the_source(run, tmp_path):
    done = run("convert_weights.py", GOLDEN / "resnet_weights.npz", "-o", "RN.pkl", cwd=tmp_path)
    source, result = weights.read(GOLDEN / "resnet_weights.npz"), weights.read(tmp_path / "RN.pkl")
    assert source.keys() == result.keys() and all((source[key] == result[key]).all() for key in source)
    assert "ResNet of 1-2-1-1 blocks, width 4, 96 px" in done.stdout


@pytest.fixture(scope="module")
def tiny_resnet(tmp_path_factory):
    """Write random weights of a tiny ResNet with the full vocabulary, and return their path."""
    a = sizes(40, 64, (1, 1, 1, 1), 4, 64, 1)
    rng = np.random.default_rng(0)
    state = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in expected_shapes(a).items()}
    state.update({name: 0.5 + np.abs(value) for name, value in state.items() if name.endswith("running_var")})
    state["logit_scale"] = np.float32(np.log(50))
    return write(tmp_path_factory.mktemp("resnet") / "RN.npz", state)


def test_the_commands_take_a_resnet(run, tmp_path, tiny_resnet):
    for label, name in enumerate(CLASSES[:3]):
        for i in range(5):
            draw(tmp_path / f"mydata/train/{name}/{i}.jpg", label, i)
            draw(tmp_path / f"mydata/test/{name}/{i}.jpg", label, 100 + i)
    shutil.copy(tiny_resnet, tmp_path / "RN.npz")
    run("extract_feature.py", "--data", "mydata", "--weights", "RN.npz", cwd=tmp_path)
    for method in ("blend", "tip-f"):
        run("train_adapter.py", "--method", method, cwd=tmp_path)
        run("predict.py", cwd=tmp_path)
    assert len((tmp_path / "result.txt").read_text().splitlines()) == 15
    test = artifacts.read(tmp_path / "output/test.npz", artifacts.Split)
    assert test.features.shape == (15, 40)
    photo = tmp_path / "mydata/test" / CLASSES[0] / "0.jpg"
    done = run("predict.py", photo, "--weights", "RN.npz", "--sheet", "sheet.png", cwd=tmp_path)
    assert CLASSES[0] in done.stdout and (tmp_path / "sheet.png").stat().st_size


def test_preprocessing_has_the_resolution_of_the_model(jt, stages):
    model, preprocess = jclip.load(GOLDEN / "resnet_weights.npz", "cpu")
    assert model.visual.input_resolution == preprocess.resolution == 96 and model.visual.output_dim == 40
    assert str(model.dtype) == "float32" and str(model.float().dtype) == "float32"
    rgb = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), np.uint8)
    text = np.random.default_rng(0).integers(1, 300, (3, 12))
    with jt.no_grad():
        per_image, _ = model(normalised(rgb), text)
    assert per_image.shape == (2, 3) and np.isfinite(per_image.numpy()).all()
    with pytest.raises(jclip.ClipError, match=r"\(n, 3, 96, 96\), found \(2, 3, 64, 64\)"):
        model.encode_image(np.zeros((2, 3, 64, 64), np.float32))
    with pytest.raises(jclip.ClipError, match="float32; load it with"):
        model.half()
