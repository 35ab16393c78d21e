"""Write one tiny CLIP in every format that people have, with the libraries that define them, for test_weights.py.

In an environment of its own (never the project's):

    pip install torch==2.13.0 "numpy<2" transformers safetensors && pip install --no-deps clip-anytorch
    python tests/golden/record_weights.py

Writes into weights/ beside itself; expected.npz has what each of them must read as. Every tensor has a different
pattern, so that no two can be confused, and git compresses them well.
"""

import hashlib
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

OUT = Path(__file__).parent / "weights"
SIZES = dict(
    embed_dim=24,
    image_resolution=32,
    vision_layers=1,
    vision_width=64,
    vision_patch_size=16,
    context_length=8,
    vocab_size=40,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=1,
)


def openai_model():
    """Make OpenAI's CLIP with a different pattern in each parameter, and the release's float16 weights."""
    folder = Path(importlib.util.find_spec("clip").submodule_search_locations[0])
    spec = importlib.util.spec_from_file_location("model", folder / "model.py")
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)
    model = code.CLIP(*SIZES.values()).eval()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_((torch.arange(parameter.numel()) % 251 / 256 + number / 8 - 2).reshape(parameter.shape))
    code.convert_weights(model)
    return model


def release(model, path: Path) -> None:
    """Write a TorchScript archive like OpenAI's: float16 weights, and three sizes among the tensors."""
    half = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in dict(input_resolution=32, context_length=8, vocab_size=40).items():
        model.__dict__.pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    traced = torch.jit.trace(
        model.float(), (torch.zeros(1, 3, 32, 32), torch.zeros(1, 8, dtype=torch.long)), check_trace=False
    )
    for name, value in traced.named_parameters():
        value.data = half[name]
    traced.save(str(path))


def hugging_face(state: dict, path: Path) -> None:
    """Fill transformers' CLIPModel under its own names, and write it as save_pretrained does."""
    tower = dict(hidden_size=64, intermediate_size=256, num_hidden_layers=1, num_attention_heads=1)
    model = CLIPModel(
        CLIPConfig(
            text_config=dict(tower, vocab_size=40, max_position_embeddings=8),
            projection_dim=24,
            vision_config=dict(tower, image_size=32, patch_size=16),
        )
    )
    filled = {}
    for name in model.state_dict():
        new = name.replace("vision_model.embeddings.patch_embedding", "visual.conv1").replace(
            "vision_model.embeddings.class_embedding", "visual.class_embedding"
        )
        new = new.replace("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding").replace(
            "vision_model.pre_layrnorm", "visual.ln_pre"
        )
        new = new.replace("vision_model.post_layernorm", "visual.ln_post").replace(
            "vision_model.encoder.layers", "visual.transformer.resblocks"
        )
        new = new.replace("text_model.embeddings.token_embedding", "token_embedding").replace(
            "text_model.embeddings.position_embedding.weight", "positional_embedding"
        )
        new = new.replace("text_model.final_layer_norm", "ln_final").replace(
            "text_model.encoder.layers", "transformer.resblocks"
        )
        new = (
            new.replace("layer_norm", "ln_")
            .replace("mlp.fc1", "mlp.c_fc")
            .replace("mlp.fc2", "mlp.c_proj")
            .replace("self_attn", "attn")
        )
        if new in ("visual_projection.weight", "text_projection.weight"):
            filled[name] = state[{"v": "visual.proj", "t": "text_projection"}[new[0]]].T
        elif "_proj." in new and "out_proj" not in new and "attn" in new:
            block, letter, kind = new.rsplit(".", 2)[0], new.rsplit(".", 2)[1][0], new.rsplit(".", 1)[1]
            filled[name] = state[f"{block}.in_proj_{kind}"].chunk(3)["qkv".index(letter)]
        elif "position_ids" not in new:
            filled[name] = state[new]
    print("not filled:", model.load_state_dict(filled, strict=False))
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, str(path))


def open_clip(state: dict, path: Path) -> None:
    """Write the names of open_clip 3's CustomTextCLIP: OpenAI's, with "text." before those of the text tower."""
    renamed = {
        name if name.startswith(("visual.", "logit_scale")) else f"text.{name}": value.contiguous()
        for name, value in state.items()
    }
    save_file({**renamed, "text.attn_mask": torch.full((8, 8), float("-inf")).triu_(1)}, str(path))


def jclip(state: dict, path: Path) -> None:
    """Write what JCLIP's own conversion makes: jt.save of a dict of torch tensors."""
    content = pickle.dumps({name: value.float() for name, value in state.items()}, 4)
    path.write_bytes(content + hashlib.sha1(content).digest() + b"HCAJSLHD")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    model = openai_model()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    np.savez_compressed(OUT / "expected.npz", **{name: value.numpy() for name, value in state.items()})
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, OUT / "nested.pth"
    )
    torch.save(state, OUT / "legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({name: value.bfloat16() for name, value in state.items()}, OUT / "bfloat16.pt")
    hugging_face(state, OUT / "hugging_face.safetensors")
    open_clip(state, OUT / "open_clip.safetensors")
    jclip(state, OUT / "jclip.pkl")
    release(model, OUT / "release.pt")
