"""CLIP's weights from any of the usual files: recognised by content, renamed by one table per layout, checked strictly.

Everything becomes OpenAI's state dict: name -> array, such as visual.transformer.resblocks.0.attn.in_proj_weight.
"""

from __future__ import annotations

import hashlib
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

import bounded

from . import unpickle
from .errors import ClipError

HEAD_WIDTH = 64  # of every head in OpenAI's models; build_model in clip/model.py
LISTED = 8  # names in an error before "and n more"
NAME_LENGTH = 200
NAME = re.compile(rf"[!-~]{{1,{NAME_LENGTH}}}")  # of a tensor, in every format
MOST_TOKENS, MOST_PIXELS = (
    8192,
    4096,
)  # of a text or an image, of an image's side: memory goes with their squares; OpenAI's most: 577, 336

# A pattern on the left becomes the name on the right; None: deliberately dropped. The first that fits counts.
OPENAI = [  # OpenAI's, open_clip's and JCLIP's names; open_clip puts a separate text tower under "text."
    (r"(?:input_resolution|context_length|vocab_size|(?:.+\.)?attn_mask)", None),
    (r"meta", None),  # where an .npz says what made it
    (r"text\.(?:(?!text_projection\.)(.+))", r"\1"),
    (r"(.+)", r"\1"),
]
HUGGING_FACE = [
    (r".+\.position_ids", None),
    (r"logit_scale", "logit_scale"),
    (r"visual_projection\.weight", "visual.proj"),
    (r"text_projection\.weight", "text_projection"),
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding\.weight", "visual.conv1.weight"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm\.(.+)", r"visual.ln_pre.\1"),
    (r"vision_model\.post_layernorm\.(.+)", r"visual.ln_post.\1"),
    (r"vision_model\.encoder\.layers\.(.+)", r"visual.transformer.resblocks.\1"),
    (r"text_model\.embeddings\.token_embedding\.weight", "token_embedding.weight"),
    (r"text_model\.embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"text_model\.final_layer_norm\.(.+)", r"ln_final.\1"),
    (r"text_model\.encoder\.layers\.(.+)", r"transformer.resblocks.\1"),
]
HUGGING_FACE_BLOCK = [  # the rest of a name behind "resblocks.0."
    (r"self_attn\.([qkv])_proj\.(weight|bias)", r"attn.in_proj_\2.\1"),  # joined below
    (r"self_attn\.out_proj\.(.+)", r"attn.out_proj.\1"),
    (r"layer_norm([12])\.(.+)", r"ln_\1.\2"),
    (r"mlp\.fc1\.(.+)", r"mlp.c_fc.\1"),
    (r"mlp\.fc2\.(.+)", r"mlp.c_proj.\1"),
]
TRANSPOSED = ("visual.proj", "text_projection")  # Hugging Face keeps them as linear layers
RELEASED = "input_resolution"  # a tensor of OpenAI's own files alone
OPEN_CLIP_CONFIG = "open_clip_config.json"
CONFIG_SIZES = {  # what Hugging Face's and open_clip's configs call the sizes of an Architecture
    "vision_config": {"hidden_size": "vision_width", "num_hidden_layers": "vision_layers", "patch_size": "patch_size"},
    "text_config": {"hidden_size": "text_width", "num_hidden_layers": "text_layers"},
    "vision_cfg": {"width": "vision_width", "layers": "vision_layers", "patch_size": "patch_size"},
    "text_cfg": {"width": "text_width", "layers": "text_layers"},
}
NESTED = ("state_dict", "model_state_dict", "model", "module")  # where training scripts put a state dict


@dataclass(frozen=True)
class Architecture:
    """The sizes of a CLIP with a vision transformer."""

    embed_dim: int
    image_resolution: int
    patch_size: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    context_length: int
    vocab_size: int
    text_width: int
    text_layers: int
    text_heads: int

    def __str__(self) -> str:
        return (
            f"ViT of {self.vision_layers} layers, width {self.vision_width}, {self.image_resolution} px in patches of "
            f"{self.patch_size}; "
            f"text of {self.text_layers} layers, width {self.text_width}, {self.context_length} tokens; features of "
            f"width {self.embed_dim}"
        )


def read(path: Path) -> dict[str, np.ndarray]:
    """OpenAI's state dict from a file, float16 or float32 as stored.

    Reads OpenAI's TorchScript archive, torch state dicts (zip or older format; plain or nested), Hugging Face's and
    open_clip's safetensors, Jittor's .pkl and .npz. Nothing in the file is run. Raises ClipError where the file is none
    of these, damaged, of another model (a Hugging Face or open_clip config beside it is heeded), or has missing, extra,
    misshapen or non-finite tensors, which it lists.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipError(f"no weights at {path}; make them with: python convert_weights.py ViT-B/32")
    with open(path, "rb") as file:
        try:
            state = _tensors(_content(path, file))
            _check_names_and_size(state, path.stat().st_size)
        except unpickle.DAMAGE as error:
            raise ClipError(
                f"{path}: damaged, or no weights of a known format ({str(error) or type(error).__name__})"
            ) from None
    if any(name.startswith("visual.layer1.") for name in state):
        raise ClipError(
            f"{path}: a CLIP with a ResNet image tower; jclip has OpenAI's vision transformers only (ViT-B/32, "
            f"ViT-B/16, ViT-L/14, ViT-L/14@336px)"
        )
    configs = _configs(path, state)
    state = _openai_names(path, state)
    _check(path, state)
    _heed(configs, path, architecture(state))
    return state


def architecture(state: dict[str, np.ndarray]) -> Architecture:
    """All sizes from the shapes of a state dict, as build_model in OpenAI's clip/model.py finds them.

    Raises ClipError where a tensor that tells a size is missing or has another number of dimensions, and where a size
    is 0 or beyond any use.
    """

    def shape(name: str, ndim: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != ndim:
            found = f"of shape {state[name].shape}" if name in state else "missing"
            raise ClipError(
                f"{name} is {found}, expected {ndim} dimension{'s' * (ndim > 1)}: no CLIP with a vision transformer"
            )
        return state[name].shape

    def layers(tower: str) -> int:
        return len({name.split(".")[tower.count(".")] for name in state if name.startswith(tower)})

    vision_width, _, _, patch = shape("visual.conv1.weight", 4)
    tokens, context = shape("visual.positional_embedding", 2)[0], shape("positional_embedding", 2)[0]
    grid = round(max(0, tokens - 1) ** 0.5)
    vocabulary, text_width = shape("token_embedding.weight", 2)
    found = Architecture(
        embed_dim=shape("text_projection", 2)[1],
        image_resolution=patch * grid,
        patch_size=patch,
        vision_width=vision_width,
        vision_layers=layers("visual.transformer.resblocks."),
        vision_heads=max(1, vision_width // HEAD_WIDTH),
        context_length=context,
        vocab_size=vocabulary,
        text_width=text_width,
        text_layers=layers("transformer.resblocks."),
        text_heads=max(1, text_width // HEAD_WIDTH),
    )
    uneven = vision_width % found.vision_heads or text_width % found.text_heads
    if min(vars(found).values()) < 1 or uneven or max(tokens, context) > MOST_TOKENS or patch * grid > MOST_PIXELS:
        raise ClipError(f"sizes that no CLIP has ({found})")
    return found


def expected_shapes(a: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model with these sizes; logit_scale is ()."""

    def block(prefix: str, width: int) -> dict[str, tuple[int, ...]]:
        return {
            prefix + name: shape
            for name, shape in {
                "attn.in_proj_weight": (3 * width, width),
                "attn.in_proj_bias": (3 * width,),
                "attn.out_proj.weight": (width, width),
                "attn.out_proj.bias": (width,),
                "ln_1.weight": (width,),
                "ln_1.bias": (width,),
                "ln_2.weight": (width,),
                "ln_2.bias": (width,),
                "mlp.c_fc.weight": (4 * width, width),
                "mlp.c_fc.bias": (4 * width,),
                "mlp.c_proj.weight": (width, 4 * width),
                "mlp.c_proj.bias": (width,),
            }.items()
        }

    v, t = a.vision_width, a.text_width
    shapes = {
        "visual.class_embedding": (v,),
        "visual.conv1.weight": (v, 3, a.patch_size, a.patch_size),
        "visual.positional_embedding": ((a.image_resolution // a.patch_size) ** 2 + 1, v),
        "visual.ln_pre.weight": (v,),
        "visual.ln_pre.bias": (v,),
        "visual.ln_post.weight": (v,),
        "visual.ln_post.bias": (v,),
        "visual.proj": (v, a.embed_dim),
        "token_embedding.weight": (a.vocab_size, t),
        "positional_embedding": (a.context_length, t),
        "ln_final.weight": (t,),
        "ln_final.bias": (t,),
        "text_projection": (t, a.embed_dim),
        "logit_scale": (),
    }
    for layer in range(a.vision_layers):
        shapes.update(block(f"visual.transformer.resblocks.{layer}.", v))
    for layer in range(a.text_layers):
        shapes.update(block(f"transformer.resblocks.{layer}.", t))
    return shapes


def write(state: dict[str, np.ndarray], file: BinaryIO) -> None:
    """Write float32 arrays as jt.save does, so that jt.load and JCLIP read them: a pickle, its SHA-1, a magic word."""
    digest = hashlib.sha1()

    class Sink:
        def write(self, part):
            digest.update(part)
            return file.write(part)

    pickler = pickle.Pickler(Sink(), 4)
    pickler.fast = True  # no memo: it would keep a second copy of every array until the end
    pickler.dump({name: np.ascontiguousarray(value, np.float32).reshape(value.shape) for name, value in state.items()})
    file.write(digest.digest() + unpickle.JITTOR_MAGIC)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal, as sha256sum prints it."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()


def _content(path: Path, file: BinaryIO):
    """Whatever the file holds, by its first bytes."""
    start = file.read(9)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        with bounded.archive(file) as archive:
            if any(name.split("/")[-1] == "data.pkl" for name in archive.namelist()):
                return unpickle.read_torch_zip(archive)
        return bounded.npz(file)
    if start[:1] == b"\x80":
        return unpickle.read_pickle(file)
    if start[8:] == b"{":
        return _safetensors(path)
    raise ValueError("expected a torch archive or state dict, safetensors, Jittor's .pkl or .npz")


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            if any(file.get_slice(name).get_dtype() == "BF16" for name in file):
                raise ValueError("its numbers are bfloat16, which numpy lacks; save it as float16 or float32")
            return {name: file.get_tensor(name) for name in file}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _tensors(content) -> dict[str, np.ndarray]:
    """The state dict in what a file held: the dict itself, one nested in it, or the attributes of a TorchScript
    module."""
    if isinstance(content, unpickle.Inert):
        return _attributes(content)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, expected names and tensors")
    content = {name: unpickle.plain(value) for name, value in content.items()}
    if not any(isinstance(value, np.ndarray) for value in content.values()):
        inner = next((content[name] for name in NESTED if isinstance(content.get(name), dict)), None)
        if inner is None:
            raise ValueError("holds no tensors")
        return _tensors(inner)
    if all(isinstance(name, str) and name.startswith("module.") for name in content):  # of torch's DataParallel
        content = {name[len("module.") :]: value for name, value in content.items()}
    strange = next((name for name, value in content.items() if not isinstance(value, (np.ndarray, int, float))), None)
    if strange is not None:
        raise ValueError(f"{strange!r} is a {type(content[strange]).__name__}, expected a tensor")
    return {str(name): np.asarray(value) for name, value in content.items()}


def _attributes(module: unpickle.Inert, prefix: str = "", met: set[int] | None = None) -> dict[str, np.ndarray]:
    """The tensors of a module and of those below it, by the path to each; a module that stands in two places is met
    once."""
    if len(prefix) > NAME_LENGTH:
        raise ValueError("modules nested deeper than any model's")
    met = {id(module)} if met is None else met
    found: dict[str, np.ndarray] = {}
    for name, value in module.attributes.items():
        if isinstance(value, np.ndarray):
            found[f"{prefix}{name}"] = value
        elif isinstance(value, unpickle.Inert) and id(value) not in met:
            met.add(id(value))
            found.update(_attributes(value, f"{prefix}{name}.", met))
    return found


def _check_names_and_size(state: dict[str, np.ndarray], size: int) -> None:
    """A few bytes of a file can name one storage a million times; what they would fill must fit the file, too."""
    strange = next((name for name in state if not NAME.fullmatch(name)), None)
    if strange is not None:
        raise ValueError(f"{strange[:50]!r} is no name of a tensor")
    total = sum(value.nbytes for value in state.values())
    if total > bounded.SLACK + bounded.RATIO * size:
        raise ValueError(f"{size} bytes that declare {total} of tensors")


def _configs(path: Path, state: dict) -> list[Path]:
    """The configs beside a file that may be its own: Hugging Face's and open_clip's, unless others wrote the file.

    Under OpenAI's names, .pkl and .npz are Jittor's and numpy's, and the release is OpenAI's own: none of them has a
    config.
    """
    foreign = not _hugging_face(state) and (path.suffix in (".pkl", ".npz") or RELEASED in state)
    return [] if foreign else [path.with_name("config.json"), path.with_name(OPEN_CLIP_CONFIG)]


def _heed(configs: list[Path], path: Path, a: Architecture) -> None:
    """Raise a ClipError where a config of a model with these sizes says what its weights cannot: another activation,
    other heads."""
    for config in filter(Path.is_file, configs):
        try:
            said = bounded.json_value(bounded.content(config, bounded.JSON_BYTES).decode("utf-8"))
        except ValueError:
            continue
        wrong = _unlike_openai(said) if isinstance(said, dict) and _of_these_sizes(said, a) else None
        if wrong:
            raise ClipError(
                f"{path}: {config.name} says {wrong}; jclip computes OpenAI's models only (QuickGELU, heads of width "
                f"{HEAD_WIDTH})"
            )


def _of_these_sizes(config: dict, a: Architecture) -> bool:
    """Whether every size that a config tells is that of the weights; else it is the config of others in the same
    folder."""
    towers = _part(config, "model_cfg") or config
    told = [
        (_part(towers, tower).get(name), getattr(a, size))
        for tower, names in CONFIG_SIZES.items()
        for name, size in names.items()
    ]
    return all(found == size for found, size in told if isinstance(found, int))


def _unlike_openai(config: dict) -> str | None:
    """What a Hugging Face or open_clip config says that jclip does not compute; None where nothing is."""
    if isinstance(config.get("model_cfg"), dict):
        open_clip = config["model_cfg"]
        if not open_clip.get("quick_gelu", False):
            return "quick_gelu is off"
        width, text = _part(open_clip, "vision_cfg").get("head_width", HEAD_WIDTH), _part(open_clip, "text_cfg")
        if width != HEAD_WIDTH:
            return f"heads of width {width}"
        return _other_heads(text.get("width", 512), text.get("heads", 8))  # open_clip's own defaults
    for tower in (_part(config, "vision_config"), _part(config, "text_config")):
        if tower.get("hidden_act", "quick_gelu") != "quick_gelu":
            return f"hidden_act is {tower['hidden_act']}"
        if wrong := _other_heads(tower.get("hidden_size"), tower.get("num_attention_heads")):
            return wrong
    return None


def _other_heads(width, heads) -> str | None:
    return (
        f"{heads} heads at width {width}"
        if isinstance(width, int) and isinstance(heads, int) and width != heads * HEAD_WIDTH
        else None
    )


def _part(config: dict, name: str) -> dict:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _hugging_face(state: dict) -> bool:
    return any(name.startswith("vision_model.") for name in state)


def _openai_names(path: Path, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    hugging_face = _hugging_face(state)
    renamed: dict[str, np.ndarray] = {}
    for name, value in state.items():
        new = _renamed(name, HUGGING_FACE if hugging_face else OPENAI)
        if hugging_face and new and ".resblocks." in f".{new}":
            block, layer, rest = re.fullmatch(r"(.*resblocks\.)([^.]*)\.?(.*)", new).groups()
            new = f"{block}{layer}.{_renamed(rest, HUGGING_FACE_BLOCK)}"
        if new in renamed:
            raise ClipError(f"{path}: two tensors are {new}")
        if new is not None:
            renamed[new] = value
    return _joined(renamed) if hugging_face else renamed


def _renamed(name: str, table: list) -> str | None:
    for pattern, new in table:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(new) if new else None
    return name  # unknown: it will be listed as extra


def _joined(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Separate queries, keys and values as one matrix; linear projections as OpenAI keeps them."""
    for name in [name for name in state if name.endswith(".q")]:
        parts = [name[:-1] + letter for letter in "qkv"]
        if (
            all(part in state and state[part].ndim for part in parts)
            and len({state[part].shape for part in parts}) == 1
        ):
            state[name[:-2]] = np.concatenate([state.pop(part) for part in parts])
    return {name: value.T if name in TRANSPOSED else value for name, value in state.items()}


def _check(path: Path, state: dict[str, np.ndarray]) -> None:
    """Raise a ClipError that lists every tensor that is missing, extra, misshapen, not of floats or not finite."""
    try:
        expected = expected_shapes(architecture(state))
    except ClipError as error:
        raise ClipError(f"{path}: {error}") from None
    for name, value in state.items():  # 0-d scalars come back from Jittor with one element
        if value.shape == (1,) and expected.get(name) == ():
            state[name] = value.reshape(())
    present = [name for name in expected if name in state]
    floats = [name for name in present if state[name].dtype.kind == "f"]
    problems = {
        "missing": [name for name in expected if name not in state],
        "extra": [name for name in state if name not in expected],
        "misshapen": [
            f"{name} {state[name].shape}, expected {expected[name]}"
            for name in present
            if state[name].shape != expected[name]
        ],
        "not floating point": [f"{name} ({state[name].dtype})" for name in present if name not in floats],
        "NaN or infinite": [name for name in floats if not np.isfinite(state[name]).all()],
    }
    found = [
        f"{what}: {', '.join(names[:LISTED])}{f' and {len(names) - LISTED} more' if len(names) > LISTED else ''}"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise ClipError(f"{path}: not the weights of one CLIP; " + "; ".join(found))
