"""CLIP in Jittor: a vision transformer or ResNet, and a causal text transformer (Radford et al., arXiv:2103.00020).

Parameters have the names of OpenAI's state dict. Letters in shapes: n images or texts, l positions (tokens of one image
or text), w width of the transformer, d width of the features.

`dtype` is the dtype of the factors of matrix products: float32, on CUDA also float16, on the CPU also bfloat16. Results
of products in float16 are float16; those in bfloat16 are bfloat16 where they are factors of the next product, float32
elsewhere. Layer norms, softmax, the residual stream and the features are computed in float32 in all cases.
"""

from __future__ import annotations

import jittor as jt
import numpy as np

from . import kernels, products, resnet_weights, runtime
from .architecture import Architecture, architecture_of, expected_shapes
from .errors import ClipError
from .module import Module, Sequential
from .products import Linear, matmul
from .resnet import ResNet
from .settings import OPENAI, ModelSettings

# device, precision -> dtype of the matrix products
DTYPES = {"cpu": {"float32": "float32", "half": "bfloat16"}, "cuda": {"float32": "float32", "half": "float16"}}


class LayerNorm(Module):
    """Layer norm over the last axis."""

    def __init__(self, width: int, dtype: str):
        self.weight = jt.zeros((width,))
        self.bias = jt.zeros((width,))
        self.dtype = dtype

    def execute(self, x):  # -> dtype
        return kernels.layer_norm(x.float32(), self.weight, self.bias, self.dtype)


class Embedding(Module):
    """The vectors of token ids."""

    def __init__(self, ids: int, width: int):
        self.weight = jt.zeros((ids, width))

    def execute(self, ids):  # (n, l) -> (n, l, w)
        return self.weight[jt.array(check_ids(ids, self.weight.shape[0], "token_embedding"))]


class PatchEmbedding(Module):
    """A convolution without bias, whose stride is the side of its kernel."""

    def __init__(self, width: int, patch_size: int, dtype: str):
        self.weight = jt.zeros((width, 3, patch_size, patch_size), dtype)

    def execute(self, x):  # (n, 3, side, side) -> (n, w, grid, grid)
        grid = x.shape[-1] // self.weight.shape[-1]
        return self.tokens(x.float32()).transpose(1, 2).reshape(x.shape[0], -1, grid, grid)

    def tokens(self, x):
        """Return the result as (n, grid², w)."""
        return matmul(kernels.patches(x, self.weight.shape[-1], str(self.weight.dtype)), self.weight)


class Attention(Module):
    """Multi-head self-attention without its output projection, which the block applies."""

    def __init__(self, width: int, heads: int, causal: bool, dtype: str):
        self.in_proj_weight = jt.zeros((3 * width, width), dtype)
        self.in_proj_bias = jt.zeros((3 * width,))
        self.out_proj = Linear(width, width, dtype)
        self.heads, self.causal = heads, causal

    def execute(self, x):  # (n, l, w) -> (n, l, w)
        return products.attention(x, self.in_proj_weight, self.in_proj_bias, self.heads, self.causal)


class MLP(Module):
    """The two layers of a block's feed-forward part, without the last bias."""

    def __init__(self, width: int, hidden: int, activation: str, dtype: str):
        self.c_fc = Linear(width, hidden, dtype)
        self.c_proj = Linear(hidden, width, dtype)
        self.activation = activation

    def execute(self, x):
        return self.c_proj(self.hidden(x))

    def hidden(self, x):
        """Return what the second layer multiplies."""
        return self.c_fc.activated(x, self.activation)


class ResidualAttentionBlock(Module):
    """x + attention of its layer norm, then the same with the MLP."""

    def __init__(self, width: int, heads: int, causal: bool, dtype: str, hidden: int, activation: str):
        self.attn = Attention(width, heads, causal, dtype)
        self.ln_1 = LayerNorm(width, dtype)
        self.mlp = MLP(width, hidden, activation, dtype)
        self.ln_2 = LayerNorm(width, dtype)

    def execute(self, x, rows=None):
        """Compute the block at all positions, or only at `rows`.

        After the attention, no position depends on another, so the other rows need not be computed.

        Parameters
        ----------
        x : Var, float32 (n, l, w)
        rows : Var or None
            int32 (n,): one row of each sequence, as indices of the n·l rows of x.

        Returns
        -------
        Var, float32 (n, l, w), or (n, w) with `rows`
        """
        attn, mlp = self.attn, self.mlp
        fused = kernels.block(x, rows, self._block_parameters(), attn.heads, attn.causal, mlp.activation)
        if fused is not None:
            return fused
        mixed = attn(self.ln_1(x))
        if rows is not None:
            x, mixed = (values.reshape(-1, values.shape[2])[rows] for values in (x, mixed))
        x = attn.out_proj.added(x, mixed)
        return mlp.c_proj.added(x, mlp.hidden(self.ln_2(x)))

    def _block_parameters(self) -> tuple:
        """Return the twelve parameters in the order of `kernels.block`."""
        attn, mlp = self.attn, self.mlp
        return (
            self.ln_1.weight,
            self.ln_1.bias,
            attn.in_proj_weight,
            attn.in_proj_bias,
            attn.out_proj.weight,
            attn.out_proj.bias,
            self.ln_2.weight,
            self.ln_2.bias,
            mlp.c_fc.weight,
            mlp.c_fc.bias,
            mlp.c_proj.weight,
            mlp.c_proj.bias,
        )


class Transformer(Module):
    """A stack of blocks.

    Attributes
    ----------
    width, layers : int
    resblocks : the blocks; each takes and returns (n, l, w)
    """

    def __init__(self, width: int, layers: int, *block):
        """Make `layers` blocks; `block` are the arguments of each ResidualAttentionBlock after its width."""
        self.width, self.layers = width, layers
        self.resblocks = Sequential(*[ResidualAttentionBlock(width, *block) for _ in range(layers)])

    def execute(self, x):
        """Compute all blocks at all positions; positions come first, as in OpenAI's code.

        Parameters
        ----------
        x : Var, (l, n, w)

        Returns
        -------
        Var, float32 (l, n, w)

        Raises
        ------
        ClipError
            If the shape is another.
        """
        if len(x.shape) != 3 or x.shape[2] != self.width:
            raise ClipError(
                f"transformer: expected (positions, sequences, {self.width}), found {tuple(x.shape)}; positions come "
                "first, as in OpenAI's code"
            )
        x = x.float32().transpose(0, 1)
        for block in self.resblocks:
            x = block(x)
        return x.transpose(0, 1)

    def at_rows(self, x, rows):
        """Compute all blocks, the last one only at `rows`.

        Parameters
        ----------
        x : Var, float32 (n, l, w)
        rows : Var
            int32 (n,): one row of each sequence, as indices of the n·l rows of x.

        Returns
        -------
        Var, float32 (n, w)
        """
        *others, last = self.resblocks
        for block in others:
            x = block(x)
        return last(x, rows)


class VisionTransformer(Module):
    """The image tower."""

    def __init__(self, a: Architecture, dtype: str):
        self.input_resolution, self.output_dim = a.image_resolution, a.embed_dim
        self.conv1 = PatchEmbedding(a.vision_width, a.patch_size, dtype)
        self.class_embedding = jt.zeros((a.vision_width,))
        self.positional_embedding = jt.zeros(((a.image_resolution // a.patch_size) ** 2 + 1, a.vision_width))
        self.ln_pre = LayerNorm(a.vision_width, "float32")
        block = a.vision_heads, False, dtype, a.vision_mlp_width, a.activation
        self.transformer = Transformer(a.vision_width, a.vision_layers, *block)
        self.ln_post = LayerNorm(a.vision_width, dtype)
        self.proj = jt.zeros((a.vision_width, a.embed_dim), dtype)

    def execute(self, x):  # (n, 3, resolution, resolution)
        x = self.conv1.tokens(x.float32())  # (n, l - 1, w)
        x = kernels.tokens(x, self.class_embedding, self.positional_embedding)  # (n, l, w)
        # the row of each class token, computed on the device: copying an array to it would wait for the device
        class_rows = jt.index((x.shape[0],), 0) * x.shape[1]
        x = self.transformer.at_rows(self.ln_pre(x), class_rows)  # (n, w)
        return matmul(self.ln_post(x), self.proj, transposed=False).float32()  # (n, d)


class CLIP(Module):
    """Both towers; `jclip.load` makes one with weights, `CLIP(architecture)` one with zeros.

    Parameters
    ----------
    a : Architecture
    dtype : "float32", "float16" (CUDA) or "bfloat16" (CPU), of the matrix products
    text_tower : bool
        Without it, there is nothing but `visual` and `logit_scale`, and `encode_text` raises ClipError.

    Attributes
    ----------
    visual : VisionTransformer or ResNet; `visual.input_resolution` is the side of its images in pixels
    context_length, vocab_size : int, of the texts
    logit_scale : Var of shape (1,), the logarithm of the factor on cosine similarities
    settings : ModelSettings, as the model was built with; the preprocessing of its images is there
    """

    settings = OPENAI

    def __init__(self, a: Architecture, dtype: str = "float32", text_tower: bool = True):
        self.context_length, self.vocab_size = a.context_length, a.vocab_size
        self.visual = (ResNet if a.is_resnet else VisionTransformer)(a, dtype)
        if text_tower:
            block = a.text_heads, True, dtype, a.text_mlp_width, a.activation
            self.transformer = Transformer(a.text_width, a.text_layers, *block)
            self.token_embedding = Embedding(a.vocab_size, a.text_width)
            self.positional_embedding = jt.zeros((a.context_length, a.text_width))
            self.ln_final = LayerNorm(a.text_width, dtype)
            self.text_projection = jt.zeros((a.text_width, a.embed_dim), dtype)
        self.logit_scale = jt.zeros((1,))

    @property
    def dtype(self):
        """The dtype of the matrix products; it equals jt.float32 and "float32", jt.float16 and "float16", and so on."""
        return self.visual.conv1.weight.dtype

    def float(self):
        """Make the matrix products float32, and return the model."""
        for parameter in self.parameters():
            if parameter.dtype != "float32":
                parameter.assign(parameter.float32())
                parameter.packed = None, None
        for module in self.modules():
            if isinstance(module, LayerNorm):
                module.dtype = "float32"
        return self

    float32 = float

    def half(self):
        """Return the model if its products are float16 or, on the CPU, bfloat16; a model gets them when it is loaded.

        Raises ClipError if they are float32.
        """
        if self.dtype == "float32":
            raise ClipError(
                "this model computes in float32; load it with jclip.load(…, precision='half'), which needs CUDA or a "
                "CPU with AVX512-BF16"
            )
        return self

    float16 = half

    def bfloat16(self):
        """Return the model if its products are bfloat16, and raise ClipError otherwise."""
        return self if self.dtype == "bfloat16" else self.float64()

    def float64(self):
        """Raise ClipError; there are no such products."""
        raise ClipError(f"{self.dtype} is what this model computes in; expected float() or half()")

    double = float64

    def to(self, device=None, dtype=None):
        """Compute on another device, or in another dtype as `float` and `half` do, and return the model.

        Jittor has one device for everything, so this moves all that is computed from now on.

        Parameters
        ----------
        device : device of `jclip.load`, or a dtype
        dtype : jt.float32, "float32", jt.float16, "float16", jt.bfloat16, "bfloat16" or None

        Raises
        ------
        ClipError
            If the device or dtype cannot be used.
        """
        if device is not None and runtime.is_device(device):
            if runtime.device_name(device) in DTYPES:
                self._check_device(runtime.device_name(device))
            runtime.use(device, "float32" if self.dtype == "float32" else "half")
        elif device is not None:
            device, dtype = None, device
        if dtype is not None:
            name = getattr(dtype, "__name__", str(dtype)).rpartition(".")[2]
            if name not in ("float32", "float16", "bfloat16"):
                raise ClipError(f"to: unknown device or dtype {name!r}; expected a device, float32 or float16")
            getattr(self, name)()
        return self

    def _check_device(self, device: str) -> None:
        """Raise ClipError if the model's products are those of the other device."""
        if self.dtype not in DTYPES[device].values():
            raise ClipError(
                f"this model computes in {self.dtype}, which {device} does not; load it again for {device}, or call "
                "its float() first"
            )

    def cpu(self):
        """Compute on the CPU from now on, and return the model."""
        return self.to("cpu")

    def cuda(self, device="cuda"):
        """Compute on CUDA from now on, and return the model."""
        return self.to("cuda" if device is None else device)

    def encode_image(self, image):
        """Compute image features, which are not normalised.

        Parameters
        ----------
        image : array or Var of shape (n, 3, resolution, resolution)
            Preprocessed images.

        Returns
        -------
        Var, float32 (n, d)

        Raises
        ------
        ClipError
            If the shape is another.
        """
        side = self.visual.input_resolution
        if len(image.shape) != 4 or tuple(image.shape[1:]) != (3, side, side):
            raise ClipError(
                f"encode_image: expected images of shape (n, 3, {side}, {side}), found {tuple(image.shape)}; "
                "use preprocess(image).unsqueeze(0)"
            )
        self._check_device(_device())
        return self.visual(jt.array(image))

    def encode_text(self, text):
        """Compute text features, which are not normalised.

        The tower is causal and its result is read at the end token, so positions after the last end token of the batch
        are not computed.

        Parameters
        ----------
        text : array or Var of shape (n, l)
            Token ids as `jclip.tokenize` returns them; l is at most context_length.

        Returns
        -------
        Var, float32 (n, d)

        Raises
        ------
        ClipError
            If the shape or dtype is another, an id is not in the vocabulary, or the model has no text tower.
        """
        if not hasattr(self, "transformer"):
            raise ClipError("encode_text: the model was loaded without its text tower; leave out text_tower=False")
        tokens = self._check_tokens(text)
        self._check_device(_device())
        end = tokens.argmax(axis=1)  # the end token has the highest id
        n, l = len(tokens), int(end.max()) + 1
        x = self.token_embedding.weight[jt.array(tokens[:, :l])] + self.positional_embedding[:l]  # (n, l, w)
        end_rows = jt.array((np.arange(n) * l + end).astype(np.int32))
        end_rows.sync()  # copied now; in the middle of the tower, copying would wait for the device
        x = self.transformer.at_rows(x, end_rows)  # (n, w)
        return matmul(self.ln_final(x), self.text_projection, transposed=False).float32()  # (n, d)

    def _check_tokens(self, text) -> np.ndarray:
        """Return token ids as an int32 array; raise ClipError if `encode_text` cannot use them."""
        tokens = text.numpy() if isinstance(text, jt.Var) else np.asarray(text)
        if (
            tokens.ndim != 2
            or not len(tokens)
            or tokens.shape[1] > self.context_length
            or tokens.dtype.kind not in "iu"
        ):
            raise ClipError(
                f"encode_text: expected token ids of shape (n, up to {self.context_length}), "
                f"found {tokens.dtype} {tokens.shape}; use jclip.tokenize"
            )
        return check_ids(tokens, self.vocab_size, "encode_text")

    def execute(self, image, text):
        """Compute the logits of n images and m texts: exp(logit_scale) times their cosine similarities.

        Parameters
        ----------
        image, text : as for `encode_image` and `encode_text`

        Returns
        -------
        logits_per_image : Var, float32 (n, m)
        logits_per_text : Var, float32 (m, n)
        """
        images, texts = _unit(self.encode_image(image)), _unit(self.encode_text(text))
        logits_per_image = self.logit_scale.exp() * jt.matmul(images, texts.transpose(0, 1))
        return logits_per_image, logits_per_image.transpose(0, 1)


def check_ids(ids, vocab_size: int, caller: str) -> np.ndarray:
    """Return token ids as an int32 array; raise ClipError, which names `caller`, if one is not in the vocabulary.

    Jittor takes a row that does not exist for zeros.
    """
    ids = ids.numpy() if isinstance(ids, jt.Var) else np.asarray(ids)
    if ids.dtype.kind not in "iu":
        raise ClipError(f"{caller}: expected token ids, found {ids.dtype} {ids.shape}; use jclip.tokenize")
    if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
        raise ClipError(
            f"{caller}: token ids reach from {ids.min()} to {ids.max()}, but these weights know 0 to {vocab_size - 1}"
        )
    return ids.astype(np.int32)


def build_model(
    state: dict, precision: str = "float32", settings: ModelSettings = OPENAI, text_tower: bool = True
) -> CLIP:
    """Build the model whose weights are given; its sizes are those of the weights.

    Parameters
    ----------
    state : dict of str to array
        As `jclip.weights.read` returns it. It is empty afterwards: each tensor is removed once it is copied, so that
        memory does not hold all of them twice.
    precision : "float32" or "half"
    settings : ModelSettings, as `jclip.weights.read_model` returns it
    text_tower : bool, as of CLIP

    Returns
    -------
    CLIP, in evaluation mode

    Raises
    ------
    ClipError
        If the weights are not those of a CLIP, or it has no such precision on the device that computes.
    """
    a = architecture_of(state, settings)
    names = set(expected_shapes(a))
    dtype = DTYPES[_device()][precision]
    if dtype == "bfloat16":
        if a.is_resnet:
            raise ClipError("ResNets have no half precision on the CPU; run with --precision float32")
        products.check_bfloat16()
    if a.is_resnet:
        names = resnet_weights.folded(names, a.vision_width, a.vision_layers)
        resnet_weights.fold(state, a.vision_width, a.vision_layers)
    model = CLIP(a, dtype, text_tower)
    model.settings = settings
    parameters = model.state_dict()
    if not text_tower:
        names = {name for name in names if name.startswith("visual.") or name == "logit_scale"}
    assert set(parameters) == names, "model.py and architecture.py disagree about the parameters' names"
    for name in state.keys() - names:
        del state[name]
    for name, parameter in parameters.items():
        # assign() takes dtype and shape from its argument, and Jittor has no 0-d Vars
        parameter.assign(_var(state.pop(name).reshape(parameter.shape), str(parameter.dtype)))
    model.eval()
    return model


def _var(array: np.ndarray, dtype: str):
    """Return an array as a Var of `dtype`; Jittor casts it faster than numpy does, and numpy has no bfloat16."""
    var = jt.array(array).stop_grad()
    var = kernels.bfloat16(var.float32()) if dtype == "bfloat16" else var.cast(dtype)
    # Without weak_sync, which computes all that waits: the zeros in whose place this Var is put.
    return var.sync(weak_sync=False).start_grad()


def _device() -> str:
    return "cuda" if jt.flags.use_cuda else "cpu"


def _unit(x):
    """Scale the rows of x to unit L2 norm."""
    return x / x.sqr().sum(-1, keepdims=True).sqrt()
