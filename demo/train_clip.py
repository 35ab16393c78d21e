"""Train the demo's tiny CLIP, jclip's towers at 48 px, with its contrastive loss on drawn photographs and captions.

    python -m demo.train_clip [-o demo/clip.npz]

The classes of the demo's task are left out of training: the names of its signs and flocks are new combinations of words
from training, and its things are not drawn at all, nor are their names in any caption. The weights file's array `meta`
records the command, seed and time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from demo import world
from fewshot import cli
from jclip import runtime
from jclip.architecture import Architecture, expected_shapes
from jclip.files import atomic_write
from jclip.paths import expand
from jclip.preprocess import pixels
from jclip.progress import Progress, track
from jclip.tokenizer import CONTEXT_LENGTH, END, VOCABULARY_SIZE, tokenize

HERE = Path(__file__).parent
RESOLUTION, PATCH, WIDTH, FEATURES = 48, 8, 96, 96
VISION_LAYERS, TEXT_LAYERS = 3, 2
WARM_UP = 100  # steps
WEIGHT_DECAY = 0.05
SIGN_CAPTIONS = (
    "a photo of a {}.",
    "a photo of a {}, a type of sign.",
    "a photo of a {colour} {}.",
    "a drawing of a {colour} {}.",
    "a {}.",
)
GLYPH_CAPTIONS = ("a photo of a {}.", "a photo of a {colour} {}.", "a drawing of a {colour} {}.", "a {}.")
KIND_SHARES = (0.55, 0.25, 0.2)  # of the photographs: signs, flocks, glyphs
UNSEEN = 49405  # stands for all tokens that no caption has; the ids above it are the start and the end token
NAME_DROPOUT = 0.1  # share of captions whose name becomes UNSEEN, which so comes to mean "something"
FLOCK_CAPTIONS = (
    "a photo of {}.",
    "a photo of {}, a type of flock.",
    "a photo of {number} {colour} {shapes}.",
    "a drawing of {}.",
    "{}.",
)


def parse(argv) -> argparse.Namespace:
    p = cli.parser(__doc__, "--device", "--seed")
    p.add_argument(
        "-o",
        "--out",
        type=expand,
        default=HERE / "clip.npz",
        metavar="FILE",
        help="the weights (default: demo/clip.npz)",
    )
    p.add_argument(
        "--photographs",
        type=cli.whole_number(1),
        default=36000,
        metavar="N",
        help="drawn for training (default: 36000)",
    )
    p.add_argument("--steps", type=cli.whole_number(1), default=4500, metavar="N", help="(default: 4500)")
    p.add_argument("--batch-size", type=cli.whole_number(2), default=192, metavar="N", help="(default: 192)")
    p.add_argument("--lr", type=float, default=1e-3, metavar="X", help="highest learning rate (default: 0.001)")
    return p.parse_args(argv)


@cli.command
def main(argv=None):
    a = parse(argv)
    started = time.time()
    images, captions = draw(a.photographs, a.seed)
    distinct, caption_of = np.unique(captions, return_inverse=True)
    # the vocabulary of these captions, in order: the end token stays last
    token_ids, tokens = np.unique(caption_tokens(distinct.tolist()), return_inverse=True)
    state = train(a, images, tokens.reshape(len(distinct), -1).astype(np.int32), caption_of, len(token_ids))
    state["token_embedding.weight"] = whole_vocabulary(state["token_embedding.weight"], token_ids)
    minutes = (time.time() - started) / 60
    made_by = {
        "command": f"python -m demo.train_clip --photographs {a.photographs} --steps {a.steps} --batch-size "
        f"{a.batch_size} --lr {a.lr:g} --seed {a.seed}",
        "minutes": round(minutes, 1),
        "cores": os.cpu_count(),
        "captions": len(distinct),
        "tokens": len(token_ids),
    }
    with atomic_write(a.out) as file:
        np.savez_compressed(
            file,
            meta=np.array(json.dumps(made_by)),
            **{name: value.astype(np.float16) for name, value in state.items()},
        )
    print(f"{a.out}: {a.out.stat().st_size / 1e6:.2f} MB, {minutes:.1f} minutes")


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw n photographs of classes that the task does not have, and caption them.

    Returns
    -------
    images : float16 array of shape (n, 3, 48, 48)
        Preprocessed.
    captions : array of shape (n,)
    """
    # spawned, not forked: the drawing processes do not share what this one has imported
    with get_context("spawn").Pool() as pool:
        drawn = pool.imap(draw_one, ((seed, i) for i in range(n)), chunksize=200)
        drawn = list(track(drawn, "drawing", " photo", n))
    return np.stack([image for image, _ in drawn]), np.array([caption for _, caption in drawn])


def draw_one(item: tuple[int, int]) -> tuple[np.ndarray, str]:
    """Draw one photograph from the seed `item`; return its preprocessed pixels and its caption."""
    rng = np.random.default_rng(item)
    kinds = [
        ({name: thing for name, thing in world.signs().items() if name not in world.NEW_SIGNS}, SIGN_CAPTIONS),
        ({name: thing for name, thing in world.flocks().items() if name not in world.NEW_FLOCKS}, FLOCK_CAPTIONS),
        (world.glyphs(), GLYPH_CAPTIONS),
    ]
    things, templates = kinds[rng.choice(len(kinds), p=KIND_SHARES)]
    name, colour = str(rng.choice(list(things))), str(rng.choice(list(world.COLOURS)))
    words = END if rng.random() < NAME_DROPOUT else name  # caption_tokens replaces an end token inside a caption
    number, _, shapes = words.partition(" ")
    caption = templates[rng.integers(len(templates))].format(words, colour=colour, number=number, shapes=shapes)
    return pixels(world.photograph(things[name], colour, rng, *world.SIZE), RESOLUTION).astype(np.float16), caption


def caption_tokens(captions: list[str]) -> np.ndarray:
    """Return the token ids (n, 77) of captions, with UNSEEN in place of a name that was dropped."""
    tokens = tokenize(captions)
    last = (tokens > 0).sum(axis=1) - 1
    inside = np.arange(tokens.shape[1]) < last[:, None]
    tokens[inside & (tokens == tokens.max())] = UNSEEN
    return tokens


def train(a, images: np.ndarray, tokens: np.ndarray, caption_of: np.ndarray, vocabulary: int) -> dict[str, np.ndarray]:
    """Return the weights after a.steps steps of CLIP's contrastive loss (Radford et al., arXiv:2103.00020, figure 3).

    All photographs of a batch with the same caption count as its positives.
    """
    runtime.use(a.device)
    jt = runtime.jittor()
    from jclip.model import build_model

    rng = np.random.default_rng(a.seed)
    model = build_model(initial_weights(rng, vocabulary))
    model.train()
    optimizer = jt.optim.AdamW(model.parameters(), a.lr, eps=1e-6, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY)
    with Progress(a.steps, "training", " step") as progress:
        for step in range(a.steps):
            rows = rng.choice(len(images), min(a.batch_size, len(images)), replace=False)
            optimizer.lr = a.lr * min((step + 1) / WARM_UP, (1 + np.cos(np.pi * step / a.steps)) / 2)
            same = (caption_of[rows][:, None] == caption_of[rows]).astype(np.float32)
            targets = jt.array(same / same.sum(axis=1, keepdims=True)).stop_grad()
            batch = images[rows].astype(np.float32)
            mirrored = rng.random(len(rows)) < 0.5
            batch[mirrored] = batch[mirrored, :, :, ::-1]
            per_image, per_text = model(jt.array(batch).stop_grad(), tokens[caption_of[rows]])
            loss = -(
                (targets * jt.nn.log_softmax(per_image, dim=1)).sum()
                + (targets * jt.nn.log_softmax(per_text, dim=1)).sum()
            ) / (2 * len(rows))
            optimizer.step(loss)
            model.logit_scale.assign(jt.minimum(model.logit_scale, np.float32(np.log(100))))
            progress.update(note="" if step % 20 else f"loss={loss.item():.3f}")
    shapes = expected_shapes(architecture(vocabulary))
    return {name: value.numpy().reshape(shapes[name]) for name, value in model.state_dict().items()}


def architecture(vocabulary: int) -> Architecture:
    return Architecture(
        embed_dim=FEATURES,
        image_resolution=RESOLUTION,
        patch_size=PATCH,
        vision_width=WIDTH,
        vision_layers=VISION_LAYERS,
        vision_heads=1,
        context_length=CONTEXT_LENGTH,
        vocab_size=vocabulary,
        text_width=WIDTH,
        text_layers=TEXT_LAYERS,
        text_heads=1,
    )


def initial_weights(rng: np.random.Generator, vocabulary: int) -> dict[str, np.ndarray]:
    """Draw initial weights with the standard deviations of initialize_parameters in OpenAI's clip/model.py."""
    state = {}
    for name, shape in expected_shapes(architecture(vocabulary)).items():
        if name.endswith("bias"):
            state[name] = np.zeros(shape)
        elif ".ln_" in f".{name}":
            state[name] = np.ones(shape)
        elif name == "logit_scale":
            state[name] = np.log(1 / 0.07)
        else:
            depth_scale = (2 * VISION_LAYERS) ** -0.5 if name.endswith(("out_proj.weight", "c_proj.weight")) else 1
            inverse_variance = {
                "token_embedding.weight": 50**2,
                "positional_embedding": 100**2,
                "visual.conv1.weight": 3 * PATCH**2,
            }.get(name, WIDTH)
            state[name] = rng.normal(0, inverse_variance**-0.5 * depth_scale, shape)
    return {name: np.asarray(value, np.float32) for name, value in state.items()}


def whole_vocabulary(rows: np.ndarray, token_ids: np.ndarray) -> np.ndarray:
    """Return the embedding of all of CLIP's tokens; those that no caption has share the row of UNSEEN."""
    embedding = np.tile(rows[token_ids == UNSEEN], (VOCABULARY_SIZE, 1))
    embedding[token_ids] = rows
    return embedding


if __name__ == "__main__":
    sys.exit(main())
