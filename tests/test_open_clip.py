"""Models with plain GELU, other heads and other preprocessing, beside what open_clip computed (record_open_clip.py)."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
from conftest import GOLDEN, draw
from PIL import Image
from safetensors.numpy import load_file, save_file

import jclip
from jclip import features, runtime, weights
from jclip.architecture import Architecture, architecture_of, expected_shapes, usual_heads
from jclip.preprocess import PreprocessConfig, pixels
from jclip.settings import ModelSettings
from jclip.weights import preprocessor

FOLDER = GOLDEN / "open_clip"
CONFIG = json.loads((FOLDER / "open_clip_config.json").read_text())
SIDE = 32


@pytest.fixture(scope="module")
def answers():
    return dict(np.load(FOLDER / "answers.npz"))


@pytest.fixture(scope="module")
def pictures(answers):
    files = np.load(GOLDEN / "preprocess.npz")
    return [Image.open(io.BytesIO(files[f"file_{number}"].tobytes())) for number in answers["pictures"]]


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden folder."""
    return shutil.copytree(FOLDER, tmp_path / "model")


def rewrite(folder, **changes):
    """Change sections of open_clip_config.json: rewrite(folder, text_cfg={"no_causal_mask": True})."""
    config = json.loads(json.dumps(CONFIG))
    for name, values in changes.items():
        section = config if name == "preprocess_cfg" else config["model_cfg"]
        section[name] = {**section.get(name, {}), **values} if isinstance(values, dict) else values
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def error(actual, expected):
    """Return the largest relative L2 error of any row."""
    return (np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected, axis=-1)).max()


def encode(model, answers):
    jt = runtime.jittor()
    with jt.no_grad():
        return model.encode_image(jt.array(answers["pixels"])).numpy(), model.encode_text(answers["tokens"]).numpy()


# ---- what is computed ----


def test_features_are_those_of_open_clip(answers):
    model, preprocess = jclip.load(FOLDER, "cpu")
    images, texts = encode(model, answers)
    assert error(images, answers["image_features"]) < 1e-5 and error(texts, answers["text_features"]) < 1e-5
    assert preprocess.config == PreprocessConfig((0.5, 0.45, 0.4), (0.5, 0.25, 0.3), "bilinear", "squash")


def test_with_gradients_they_are_the_same(answers):
    model, _ = jclip.load(FOLDER, "cpu")
    jt = runtime.jittor()
    images = model.encode_image(jt.array(answers["pixels"])).numpy()
    assert error(images, answers["image_features"]) < 1e-5


def test_quickgelu_or_other_heads_would_be_noticed(folder, answers):
    for changes in ({"quick_gelu": True}, {"vision_cfg": {"head_width": 22}, "text_cfg": {"heads": 2}}):
        images, texts = encode(jclip.load(rewrite(folder, **changes), "cpu")[0], answers)
        assert error(images, answers["image_features"]) > 1e-3 and error(texts, answers["text_features"]) > 1e-3


def test_preprocessing_is_open_clips_to_the_bit(answers, pictures):
    configs = [CONFIG["preprocess_cfg"], *map(json.loads, answers["others"])]
    expected = [answers["pixels"], *(answers[f"pixels_{i}"] for i in range(len(configs) - 1))]
    for config, rows in zip(configs, expected):
        known = ModelSettings(
            preprocess=PreprocessConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})
        )
        for picture, row in zip(pictures, rows):
            np.testing.assert_array_equal(pixels(picture, SIDE, known.preprocess), row, err_msg=f"{config} {picture}")


def test_batches_are_normalised_by_the_models_own_mean(answers, pictures):
    model, preprocess = jclip.load(FOLDER, "cpu")
    from jclip.preprocess import crop

    (batch,) = features.image_features(
        model, pictures, lambda image: crop(image, SIDE, preprocess.config), len(pictures)
    )
    np.testing.assert_allclose(batch.rows, features.unit(answers["image_features"]), atol=1e-5)


# ---- what says so ----


@pytest.mark.parametrize(
    "config, record, message",
    [
        ({"model_cfg": {"quick_gelu": True}}, None, None),
        (None, {"activation": "quickgelu"}, "its own record says activation quickgelu"),
        (None, {"activation": "gelu"}, None),
        (None, {"activation": "swish"}, 'record says activation "swish"; jclip computes quickgelu or gelu'),
        (None, {"preprocess": {"resize_mode": "tile"}}, 'says resize_mode "tile"'),
        (None, {"preprocess": {"std": [1, 0, 1]}}, "says std .*above 0"),
        (None, {"vision_heads": "2"}, "vision_heads"),
        (None, {"epoch": 3}, None),
    ],
)
def test_a_record_in_safetensors_is_read_and_must_agree_with_the_config(folder, config, record, message):
    state = load_file(folder / "open_clip_model.safetensors")
    save_file(state, folder / "open_clip_model.safetensors", {"meta": json.dumps(record or {})})
    if message is None:
        assert weights.read_model(folder)[1].activation == "gelu"
    else:
        with pytest.raises(jclip.ClipError, match=message) as raised:
            weights.read_model(folder)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("form", ["npz", "pkl", "safetensors"])
def test_a_record_is_read_back_from_every_format(tmp_path, form):
    state, settings = weights.read_model(FOLDER)
    record, path = settings.differences(), tmp_path / f"w.{form}"
    if form == "npz":
        np.savez(path, meta=np.array(json.dumps(record)), **state)
    elif form == "pkl":
        with open(path, "wb") as file:
            weights.write(state, file, record)
    else:
        save_file(
            {name: np.ascontiguousarray(value) for name, value in state.items()}, path, {"meta": json.dumps(record)}
        )
    assert weights.read_model(path)[1] == settings
    assert settings.differences() == record and record["activation"] == "gelu" and record["vision_heads"] == 2


def test_jittor_reads_a_file_with_a_record(tmp_path):
    state, settings = weights.read_model(FOLDER)
    with open(tmp_path / "w.pkl", "wb") as file:
        weights.write(state, file, settings.differences())
    runtime.use("cpu")
    assert runtime.jittor().load(str(tmp_path / "w.pkl")).keys() == {*state, "meta"}


def test_openais_models_are_written_as_before():
    plain, recorded = io.BytesIO(), io.BytesIO()
    state = dict(np.load(GOLDEN / "weights/expected.npz"))
    weights.write(state, plain)
    weights.write(state, recorded, ModelSettings().differences())
    assert plain.getvalue() == recorded.getvalue()
    assert "meta" not in pickle.loads(plain.getvalue()[:-28])


def test_two_configs_that_contradict_each_other_are_an_error(folder):
    (folder / "config.json").write_text('{"vision_config": {"hidden_act": "quick_gelu"}, "text_config": {}}')
    with pytest.raises(jclip.ClipError, match="open_clip_config.json says activation gelu, config.json says quickgelu"):
        weights.read(folder)


def test_the_option_must_agree_with_the_config(folder):
    assert weights.read_model(folder, "gelu")[1].activation == "gelu"
    with pytest.raises(
        jclip.ClipError, match="--activation says activation quickgelu, open_clip_config.json says gelu"
    ):
        weights.read_model(folder, "quickgelu")
    with pytest.raises(jclip.ClipError, match="--activation says activation gelu, OpenAI's own file says quickgelu"):
        weights.read_model(GOLDEN / "weights/release.pt", "gelu")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_cfg": {"no_causal_mask": True}}, "no_causal_mask True in text_cfg"),
        (
            {"text_cfg": {"hf_model_name": "xlm-roberta-base"}},
            "hf_model_name xlm-roberta-base, a text tower of Hugging",
        ),
        ({"text_cfg": {"hf_tokenizer_name": "google/mt5-base"}}, "hf_tokenizer_name google/mt5-base"),
        ({"text_cfg": {"pool_type": "last"}}, "pool_type last in text_cfg"),
        ({"text_cfg": {"embed_cls": True}}, "embed_cls True"),
        ({"text_cfg": {"proj_type": "none"}}, "proj_type none"),
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}}, "siglip_224, a SigLIP"),
        ({"vision_cfg": {"timm_model_name": "eva02_base_patch16_clip_224"}}, "eva02.*, an EVA-CLIP"),
        ({"vision_cfg": {"timm_model_name": "convnext_base"}}, "convnext_base, an image tower of timm"),
        ({"vision_cfg": {"no_ln_pre": True}}, "no_ln_pre True in vision_cfg"),
        ({"vision_cfg": {"pool_type": "avg"}}, "pool_type avg in vision_cfg"),
        ({"vision_cfg": {"attentional_pool": True}}, "attentional_pool True"),
        ({"vision_cfg": {"ls_init_value": 1e-4}}, "ls_init_value 0.0001"),
        ({"vision_cfg": {"norm_kwargs": {"eps": 1e-6}}}, "norm_kwargs"),
        ({"multimodal_cfg": {"width": 64}}, "multimodal_cfg, a CoCa"),
        ({"init_logit_bias": -10}, "init_logit_bias, a SigLIP"),
        (
            {"preprocess_cfg": {"interpolation": "lanczos"}},
            'says interpolation "lanczos"; jclip computes bicubic or bili',
        ),
        ({"preprocess_cfg": {"resize_mode": "tile"}}, 'says resize_mode "tile"'),
        ({"preprocess_cfg": {"mean": [0.5, 0.5]}}, "says mean .*expected three numbers"),
        ({"preprocess_cfg": {"mode": "L"}}, "says mode L"),
        ({"vision_cfg": {"head_width": 0}}, "vision_heads 0"),
        ({"vision_cfg": {"head_width": 29}}, "how many heads they have"),
        ({"text_cfg": {"heads": 5}}, "how many heads they have"),
    ],
)
def test_what_is_computed_in_another_way_is_refused_by_name(folder, changes, message):
    with pytest.raises(jclip.ClipError, match=message) as raised:
        weights.read(rewrite(folder, **changes))
    assert "\n" not in str(raised.value) and "model" in str(raised.value)


def test_a_config_without_its_outer_part_is_read_as_open_clips_own_are(folder):
    (folder / "open_clip_config.json").write_text(json.dumps(CONFIG["model_cfg"]))
    assert weights.read_model(folder)[1] == ModelSettings("gelu", 2, 4)


def test_another_tokenizer_is_refused_without_a_config(tmp_path):
    state = weights.read(FOLDER)
    state["token_embedding.weight"] = np.zeros((250_100, 48), np.float16)
    np.savez(tmp_path / "w.npz", **state)
    with pytest.raises(jclip.ClipError, match="250100 token ids, those of another tokenizer"):
        weights.read(tmp_path / "w.npz")


def test_harmless_settings_of_open_clip_are_accepted(folder):
    rewrite(
        folder,
        custom_text=True,
        vision_cfg={"patch_dropout": 0.5, "output_tokens": False, "pool_type": "tok", "ls_init_value": None},
        text_cfg={"pool_type": "argmax", "pad_id": 0, "no_causal_mask": False},
        preprocess_cfg={"size": [224, 224], "mode": "RGB", "fill_color": 0, "interpolation": "random"},
    )
    assert weights.read_model(folder)[1].activation == "gelu"


@pytest.mark.parametrize(
    "tensor, message",
    [
        ("visual.trunk.blocks.0.attn.qkv.weight", "an image tower of timm, as SigLIP, EVA"),
        ("text_decoder.cross_attn.0.ln_1.weight", "a CoCa"),
        ("text.transformer.embeddings.word_embeddings.weight", "a text tower of Hugging Face"),
        ("visual.blocks.0.attn.q_proj.weight", "an EVA-CLIP"),
    ],
)
def test_weights_alone_show_what_they_are(tmp_path, tensor, message):
    state = weights.read(FOLDER)
    kept = {name: value for name, value in state.items() if not name.startswith("visual.") or "trunk" not in tensor}
    if ".blocks." in tensor or "text.transformer" in tensor:
        kept = {name: value for name, value in kept.items() if "resblocks" not in name}
    np.savez(tmp_path / "w.npz", **{**kept, tensor: np.zeros((4, 4), np.float32)})
    with pytest.raises(jclip.ClipError, match=message):
        weights.read(tmp_path / "w.npz")


# ---- Hugging Face's configs ----


def hugging_face_folder(path, config, preprocessing=None):
    path.mkdir()
    shutil.copy(GOLDEN / "weights/hugging_face.safetensors", path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    if preprocessing is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return path


BOTH = {"model_type": "clip", "vision_config": {"hidden_act": "gelu"}, "text_config": {"hidden_act": "gelu"}}


@pytest.mark.parametrize(
    "config, message",
    [
        ({**BOTH, "text_config": {}}, "hidden_act gelu for images and quick_gelu for texts"),
        ({**BOTH, "vision_config": {"hidden_act": "gelu_new"}}, "hidden_act gelu_new"),
        ({**BOTH, "model_type": "siglip"}, "model_type siglip"),
        ({**BOTH, "vision_config": {"hidden_act": "gelu", "layer_norm_eps": 1e-6}}, "layer_norm_eps 1e-06"),
        ({**BOTH, "vision_config": {"hidden_act": ["gelu"]}}, "hidden_act"),
    ],
)
def test_hugging_faces_other_models_are_refused_by_name(tmp_path, config, message):
    with pytest.raises(jclip.ClipError, match=f"config.json says {message}"):
        weights.read(hugging_face_folder(tmp_path / "model", config))


def test_hugging_faces_older_config_and_its_defaults(tmp_path):
    old = {
        "vision_config_dict": {"hidden_act": "gelu"},
        "text_config_dict": {"hidden_act": "gelu"},
        "vision_config": {},
    }
    assert weights.read_model(hugging_face_folder(tmp_path / "old", old))[1].activation == "gelu"
    empty = {"vision_config": {}, "text_config": {}}
    assert weights.read_model(hugging_face_folder(tmp_path / "empty", empty))[1] == ModelSettings()
    plain = {"vision_config": {"hidden_size": 64, "num_attention_heads": 1}, "text_config": {"num_attention_heads": 1}}
    assert weights.read_model(hugging_face_folder(tmp_path / "new", plain))[1] == ModelSettings()


CLIP_PROCESSOR = {
    "crop_size": {"height": 32, "width": 32},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 32},
}


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, {}),
        ({"size": 32, "crop_size": 32}, {}),
        ({"size": 40}, {"size": 40}),
        ({"size": {"height": 32, "width": 32}}, {"resize_mode": "squash"}),
        (
            {"size": {"height": 40, "width": 40}, "resample": 2},
            {"resize_mode": "squash", "size": 40, "interpolation": "bilinear"},
        ),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, {"resize_mode": "squash"}),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
        ({"do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_hugging_faces_preprocessing_is_followed(tmp_path, changes, expected):
    folder = hugging_face_folder(tmp_path / "model", BOTH, {**CLIP_PROCESSOR, **changes})
    assert weights.read_model(folder)[1] == ModelSettings("gelu", preprocess=PreprocessConfig(**expected))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"resample": 0}, "resample 0"),
        ({"size": {"longest_edge": 32}}, "size {'longest_edge': 32}"),
        ({"size": {"height": 32, "width": 40}}, "size"),
        ({"size": 16}, "size 16"),
        ({"crop_size": 48}, "crop_size 48.*for 32 px"),
        ({"do_resize": False}, "size .*do_resize False"),
        ({"do_center_crop": False}, "crop_size .*do_center_crop False"),
        ({"rescale_factor": 1.0}, "rescale_factor 1.0"),
        ({"image_mean": "grey"}, "mean"),
    ],
)
def test_hugging_faces_preprocessing_that_is_not_computed_is_refused(tmp_path, changes, message):
    folder = hugging_face_folder(tmp_path / "model", BOTH, {**CLIP_PROCESSOR, **changes})
    with pytest.raises(jclip.ClipError, match=f"preprocessor_config.json.* says {message}"):
        weights.read(folder)


def test_a_preprocessor_config_of_other_weights_is_ignored():
    assert preprocessor.hugging_face_preprocessing({"crop_size": 336, "size": 336}, 224, is_own=False) is None


# ---- sizes ----


@pytest.mark.parametrize(
    "width, heads", [(768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16), (1792, 16), (64, 1), (32, 1)]
)
def test_official_widths_have_official_heads(width, heads):
    assert usual_heads(width, is_vision=True) == heads
    assert usual_heads(1280, is_vision=False) == 20  # the text tower of bigG/14


@pytest.mark.parametrize(
    "sizes, parameters",  # counted by open_clip in PyTorch
    [
        ((1024, 224, 14, 1280, 32, 16, 77, 49408, 1024, 24, 16, "gelu"), 986109441),  # ViT-H-14
        ((1024, 224, 14, 1408, 40, 16, 77, 49408, 1024, 24, 16, "gelu", 6144), 1366678273),  # ViT-g-14
        ((1280, 224, 14, 1664, 48, 16, 77, 49408, 1280, 32, 20, "gelu", 8192), 2539567105),  # ViT-bigG-14
    ],
)
def test_large_models_have_their_shapes(sizes, parameters):
    a = Architecture(*sizes)
    shapes = expected_shapes(a)
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == parameters
    state = {name: np.broadcast_to(np.float16(0), shape) for name, shape in shapes.items()}
    assert architecture_of(state, ModelSettings("gelu")) == a


# ---- the commands ----


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A folder of open_clip with the full vocabulary and plain GELU, and a small data set beside it."""
    here = tmp_path_factory.mktemp("open_clip")
    a = Architecture(24, 32, 16, 64, 1, 2, 77, 49408, 64, 1, 1, "gelu", 96, 160)
    rng = np.random.default_rng(0)
    state = {name: rng.normal(0, 0.2, shape).astype(np.float16) for name, shape in expected_shapes(a).items()}
    (here / "laion").mkdir()
    save_file(state, here / "laion/open_clip_model.safetensors")
    model = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"width": 64, "heads": 1, "layers": 1},
    }
    config = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (here / "laion/open_clip_config.json").write_text(json.dumps(config))
    for label in range(2):
        for i in range(3):
            draw(here / f"data/train/{'ab'[label]}/{i}.jpg", label, i)
        draw(here / f"data/test/{label}.jpg", label, 9)
    return here


def test_the_commands_follow_a_config_and_keep_rows_of_other_settings_apart(full, run, tmp_path):
    """Folder and converted file give the same features; with a changed config, nothing that was stored is used."""
    shutil.copytree(full, tmp_path, dirs_exist_ok=True)
    extract = ("extract_feature.py", "--data", "data", "--views", "plain", "--device", "cpu", "--weights")
    first = run(*extract, "laion", cwd=tmp_path)
    assert "QuickGELU" not in first.stderr
    rows = np.load(tmp_path / "output/test.npz")["features"]
    meta = json.loads(str(np.load(tmp_path / "output/test.npz")["meta"]))
    assert len(meta["settings_sha256"]) == 64 and meta["weights_sha256"] == weights.sha256(tmp_path / "laion")
    assert "encoded 0, kept" in run(*extract, "laion", cwd=tmp_path).stdout
    run("train_adapter.py", "--method", "tip", cwd=tmp_path)

    converted = run("convert_weights.py", "laion", cwd=tmp_path)
    assert "plain GELU" in converted.stdout
    run(*extract, "laion.pkl", "--output", "converted", cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "converted/test.npz")["features"], rows)

    config = tmp_path / "laion/open_clip_config.json"
    changed = json.loads(config.read_text())
    changed["preprocess_cfg"]["mean"] = [0.4] * 3
    config.write_text(json.dumps(changed))
    done = run("predict.py", "data/test/0.jpg", "--weights", "laion", "--device", "cpu", cwd=tmp_path, check=False)
    assert (
        done.returncode == 1 and "another activation or preprocessing" in done.stderr and done.stderr.count("\n") <= 2
    )
    done = run(*extract, "laion", cwd=tmp_path)
    assert ", kept 0" in done.stdout
    assert np.abs(np.load(tmp_path / "output/test.npz")["features"] - rows).max() > 1e-3


def test_the_option_is_recorded_and_a_bare_file_gets_a_remark(run, tmp_path, answers):
    shutil.copy(FOLDER / "open_clip_model.safetensors", tmp_path / "bare.safetensors")
    plain = run("convert_weights.py", "bare.safetensors", "-o", "plain.pkl", cwd=tmp_path)
    assert plain.stderr.count("QuickGELU is assumed") == 1 and "--activation gelu" in plain.stderr
    done = run("convert_weights.py", "bare.safetensors", "--activation", "gelu", "-o", "gelu.pkl", cwd=tmp_path)
    assert "QuickGELU" not in done.stderr and "plain GELU" in done.stdout
    assert weights.read_model(tmp_path / "plain.pkl")[1].activation == "quickgelu"
    assert weights.read_model(tmp_path / "gelu.pkl")[1].activation == "gelu"
    again = run("convert_weights.py", "gelu.pkl", "--activation", "quickgelu", "-o", "x.pkl", cwd=tmp_path, check=False)
    assert again.returncode == 1 and again.stderr.count("\n") == 1 and not (tmp_path / "x.pkl").exists()
    assert "--activation says activation quickgelu, its own record says gelu" in again.stderr
    run("convert_weights.py", "bare.safetensors", "--activation", "quickgelu", "-o", "quick.pkl", cwd=tmp_path)
    again = run("convert_weights.py", "quick.pkl", "--activation", "gelu", "-o", "x.pkl", cwd=tmp_path, check=False)
    assert again.returncode == 1 and "its own record says quickgelu" in again.stderr


def test_another_width_scale_and_a_large_resolution_go_through_the_readers(tmp_path):
    """336 px, as ViT-L/14@336px has, in 70 photographs that processes read: features are those of `preprocess`."""
    from fewshot.encoder import Encoder

    a = Architecture(20, 336, 14, 48, 1, 2, 77, 49408, 32, 1, 2, "gelu", 80, 64)
    rng = np.random.default_rng(0)
    state = {name: rng.normal(0, 0.2, shape).astype(np.float16) for name, shape in expected_shapes(a).items()}
    state["logit_scale"] = np.float16(np.log(30))
    settings = ModelSettings("gelu", 2, 2, PreprocessConfig(mean=(0.5,) * 3, resize_mode="longest", fill_color=30))
    with open(tmp_path / "w.pkl", "wb") as file:
        weights.write(state, file, settings.differences())
    paths = [tmp_path / f"{i}.jpg" for i in range(70)]
    for i, path in enumerate(paths):
        draw(path, i % 6, i)
    encoder = Encoder.load(tmp_path / "w.pkl", "cpu")
    assert (encoder.width, encoder.settings) == (20, settings) and encoder.scale == pytest.approx(30, rel=1e-3)
    rows = encoder.encode_photos(paths).rows
    jt = runtime.jittor()
    with jt.no_grad():
        expected = encoder.model.encode_image(encoder.preprocess(Image.open(paths[69])).unsqueeze(0)).numpy()
    assert rows.shape == (70, 20)
    np.testing.assert_allclose(rows[69], features.unit(expected)[0], atol=1e-5)
    assert encoder.encode_prompts([["a cat"], ["a dog", "a photo of a dog"]]).shape == (2, 20)
