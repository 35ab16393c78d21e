"""Code written for OpenAI's `clip` and PyTorch's modules does the same with jclip: its calls, and training."""

import numpy as np
import pytest
from conftest import GOLDEN
from PIL import Image

import jclip
from jclip import runtime, tokenizer


@pytest.fixture
def model(jt):
    return jclip.load(GOLDEN / "clip_weights.npz", "cpu")[0]


@pytest.fixture(scope="module")
def stages():
    stages = dict(np.load(GOLDEN / "clip_stages.npz"))
    tokens = stages["tokens"].astype(np.int32)
    return {**stages, "tokens": np.pad(tokens, ((0, 0), (0, tokenizer.CONTEXT_LENGTH - tokens.shape[1])))}


def close(actual, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(actual.numpy(), expected, atol=2e-5 * np.abs(expected).max())


def values(model):
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def loss_of(jt, model, stages, tower):
    """Return a loss on the features of one tower, or for "both" on the logits."""
    image, tokens = jt.array(stages["image"]), jt.array(stages["tokens"])
    if tower == "both":
        target = jt.array(np.arange(len(image), dtype=np.int32) % len(tokens))
        return jt.nn.cross_entropy_loss(model(image, tokens)[0], target)
    return (model.encode_image(image) if tower == "image" else model.encode_text(tokens)).sqr().sum()


@pytest.mark.parametrize(
    "prepare",
    [
        lambda model: model,
        lambda model: model.eval(),
        lambda model: model.train(),
        lambda model: model.train().eval(),
        lambda model: model.float().to("cpu").eval(),
        lambda model: (model.visual.eval(), model.transformer.resblocks.eval(), model)[-1],
        lambda model: model.requires_grad_(False).requires_grad_(True),
    ],
)
def test_a_step_changes_all_parameters_of_the_towers_in_the_loss(jt, model, stages, prepare):
    """The gradients flow without train(), and in evaluation mode as well, as in PyTorch."""
    model = prepare(model)
    for tower in ("image", "text", "both"):
        before = values(model)
        jt.optim.SGD(model.parameters(), 1e-3).step(loss_of(jt, model, stages, tower))
        changed = {name for name, value in values(model).items() if (value != before[name]).any()}
        visual = {name for name in before if name.startswith("visual.")}
        text = set(before) - visual - {"logit_scale"}
        assert changed == {"image": visual, "text": text, "both": set(before)}[tower]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_fine_tuning_lowers_the_loss(jt, model, stages, optimizer):
    optimizer = getattr(jt.optim, optimizer)(model.parameters(), 1e-4 if optimizer != "SGD" else 1e-2)
    seen = []
    for _ in range(6):
        loss = loss_of(jt, model, stages, "both")
        optimizer.step(loss)
        seen.append(loss.item())
    assert seen[-1] < seen[0] - 1e-3


def test_frozen_parameters_stay_and_the_others_learn(jt, model, stages):
    model.requires_grad_(False)
    model.visual.proj.start_grad()
    before = values(model)
    jt.optim.SGD(model.parameters(), 0.1).step(loss_of(jt, model, stages, "both"))
    changed = [name for name, value in values(model).items() if (value != before[name]).any()]
    assert changed == ["visual.proj"]


def test_a_linear_probe_learns_on_a_model_that_stays(jt, model, stages):
    for frozen in (True, False):
        model.requires_grad_(not frozen)
        probe = jt.nn.Linear(48, 3)
        before, weight = values(model), probe.weight.numpy().copy()
        rows = model.encode_image(jt.array(stages["image"]))
        target = jt.array(np.arange(len(rows), dtype=np.int32) % 3)
        jt.optim.SGD(probe.parameters(), 0.1).step(jt.nn.cross_entropy_loss(probe(rows), target))
        assert (probe.weight.numpy() != weight).any()
        assert all((value == before[name]).all() for name, value in values(model).items())


def text_features(jt, model, prompts, tokens):
    """Encode embedded prompts (n, l, w) as the text encoder of CoOp does (Zhou et al., arXiv:2109.01134)."""
    x = prompts + model.positional_embedding
    x = x.permute(1, 0, 2)  # (n, l, w) -> (l, n, w)
    x = model.transformer(x)
    x = x.permute(1, 0, 2)
    x = model.ln_final(x)
    return x[jt.arange(x.shape[0]), jt.array(tokens.argmax(-1).astype(np.int32))] @ model.text_projection


def test_the_text_encoder_of_coop(jt, model, stages):
    for computing in (jt.no_grad, jt.enable_grad):
        with computing():
            embedded = model.token_embedding(jt.array(stages["tokens"]))
            assert embedded.shape == (*stages["tokens"].shape, model.ln_final.weight.shape[0])
            close(text_features(jt, model, embedded, stages["tokens"]), stages["text_features"])


@pytest.mark.parametrize("frozen", [False, True])
def test_a_prompt_learns_through_the_text_tower(jt, model, stages, frozen):
    model.requires_grad_(not frozen)
    context = jt.array(np.zeros((1, 2, model.transformer.width), np.float32))
    tokens, side = stages["tokens"], model.token_embedding(jt.array(stages["tokens"]))
    seen = []
    optimizer = jt.optim.SGD([context], 0.1)
    for _ in range(3):
        repeated = context.broadcast((len(tokens), *context.shape[1:]))
        prompts = jt.concat([side[:, :1], repeated, side[:, 1:-2]], dim=1)
        optimizer.step(text_features(jt, model, prompts, tokens).sqr().sum())
        seen.append(context.numpy().copy())
    assert np.abs(seen[0]).max() > 0 and (seen[1] != seen[2]).any()


@pytest.mark.parametrize("tower", ["transformer", "visual.transformer"])
def test_a_transformer_has_positions_first_as_openais(jt, model, stages, tower):
    module = model
    for part in tower.split("."):
        module = getattr(module, part)
    first, last = stages[f"{tower}.resblocks.0.in"], stages[f"{tower}.resblocks.1.out"]  # (n, l, w)
    with jt.no_grad():
        close(module(jt.array(first).permute(1, 0, 2)), last.transpose(1, 0, 2))
        with pytest.raises(jclip.ClipError, match=r"expected \(positions, sequences, \d+\)"):
            module(jt.array(first[..., :5]))
    assert len(module.resblocks) == module.layers == 2 and module.width == first.shape[-1]


def test_the_image_tower_part_by_part(jt, model, stages):
    """The lines of forward in openai/CLIP clip/model.py, VisionTransformer."""
    visual = model.visual
    with jt.no_grad():
        x = visual.conv1(jt.array(stages["image"]))  # (n, w, grid, grid)
        x = x.reshape(x.shape[0], x.shape[1], -1).permute(0, 2, 1)
        first = visual.class_embedding + jt.zeros((x.shape[0], 1, x.shape[-1]))
        x = jt.concat([first, x], dim=1) + visual.positional_embedding
        x = visual.ln_pre(x).permute(1, 0, 2)
        x = visual.transformer(x).permute(1, 0, 2)
        x = visual.ln_post(x[:, 0, :]) @ visual.proj
        close(x, stages["visual.out"])
        close(visual(jt.array(stages["image"])), stages["visual.out"])


def test_token_ids_that_the_embedding_lacks_are_refused(jt, model):
    for wrong in ([[0, 300]], [[-1, 0]], [[0.5]]):
        with pytest.raises(jclip.ClipError, match="token_embedding"):
            model.token_embedding(jt.array(np.array(wrong)))


def test_the_names_of_openais_package(jt):
    from jclip import clip
    from jclip.simple_tokenizer import SimpleTokenizer

    for name in ("load", "tokenize", "available_models"):
        assert getattr(clip, name) is getattr(jclip, name)
    assert jclip.clip is clip and "ViT-B/32" in clip.available_models()
    tokenizer = SimpleTokenizer()
    ids = tokenizer.encode("A Photo of  crème brûlée, they've 2")
    assert [49406, *ids, 49407] == [id for id in jclip.tokenize("A Photo of  crème brûlée, they've 2").numpy()[0] if id]
    assert tokenizer.decode(ids) == "a photo of crème brûlée , they 've 2 "
    assert tokenizer.decode([49406, *ids[:1], 49407]) == "<|startoftext|>a <|endoftext|>"
    assert tokenizer.encoder["<|endoftext|>"] == 49407 and tokenizer.decoder[49406] == "<|startoftext|>"
    assert clip.tokenize("word " * 100, truncate=True).shape == (1, 77)
    with pytest.raises(RuntimeError, match="too long"):
        clip.tokenize(["word " * 100])


class Device:
    """What str() of a torch.device gives."""

    def __str__(self):
        return "cpu"


@pytest.mark.parametrize("device", ["cpu", "cpu:0", Device(), "auto", None])
def test_load_takes_openais_arguments(jt, device):
    model, preprocess = jclip.load(str(GOLDEN / "clip_weights.npz"), device=device, jit=False, download_root=None)
    assert not model.training and model.train().training and not model.train(False).training
    assert jclip.load(name=str(GOLDEN / "clip_weights.npz"), device="cpu", jit=True)[1].resolution == 64
    assert model.dtype == "float32" and model.dtype == jt.float32
    for returned in (model.float(), model.float32(), model.to("cpu"), model.to(device), model.cpu(), model.eval()):
        assert returned is model
    assert (
        model.to(model.dtype) is model and model.to(dtype=jt.float32) is model and model.to("cpu", "float32") is model
    )
    image = preprocess(Image.new("RGB", (50, 70))).unsqueeze(0).to("cpu")
    assert model.encode_image(image).shape == (1, model.visual.output_dim)
    assert float(model.logit_scale.exp().item()) > 1


def test_what_cannot_be_done_says_so(jt, model):
    for call, message in [
        (lambda: jclip.load(GOLDEN / "clip_weights.npz", "cuda:1"), "only the first GPU.*CUDA_VISIBLE_DEVICES=1"),
        (lambda: model.to("cuda:3"), "CUDA_VISIBLE_DEVICES=3"),
        (lambda: model.to(2), "CUDA_VISIBLE_DEVICES=2"),
        (lambda: jclip.load(GOLDEN / "clip_weights.npz", "mps"), "unknown device 'mps'"),
        (lambda: model.to("mps"), "unknown device 'mps'"),
        (lambda: model.to("float23"), "unknown device or dtype 'float23'"),
        (lambda: model.half(), "precision='half'"),
        (lambda: model.to(jt.float16), "precision='half'"),
        (lambda: model.bfloat16(), r"float\(\) or half\(\)"),
        (lambda: jclip.load(GOLDEN / "clip_weights.npz", "cpu", "/folder"), "jit is True or False.*download_root"),
    ]:
        with pytest.raises(jclip.ClipError, match=message):
            call()
    if runtime.cuda_problem():
        for call in (lambda: jclip.load(GOLDEN / "clip_weights.npz", device="cuda:0"), lambda: model.cuda()):
            with pytest.raises(jclip.ClipError, match="CUDA cannot be used here"):
                call()


def test_half_precision_becomes_float32_by_float(jt, model, stages):
    from jclip.architecture import architecture_of
    from jclip.model import CLIP
    from jclip.weights import read

    state = read(GOLDEN / "clip_weights.npz")
    half = CLIP(architecture_of(state), "float16")
    for name, parameter in half.state_dict().items():
        parameter.assign(jt.array(state[name].astype(str(parameter.dtype)).reshape(parameter.shape)))
    assert half.dtype == "float16" == str(half.visual.conv1.weight.dtype) and half.half() is half
    assert half.float().dtype == jt.float32
    with jt.no_grad():
        close(half.encode_image(stages["image"]), model.encode_image(stages["image"]).numpy())
        close(half.encode_text(stages["tokens"]), model.encode_text(stages["tokens"]).numpy())
