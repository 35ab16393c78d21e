"""CLIP on Jittor, with the names and meanings of OpenAI's `clip`: load, tokenize, available_models.

import jclip as clip
import jittor as jt  # after jclip, which prepares the machine for it
from PIL import Image

model, preprocess = clip.load("ViT-B-32.pkl")
image = preprocess(Image.open("photo.jpg")).unsqueeze(0)
text = clip.tokenize(["a diagram", "a dog", "a cat"])
with jt.no_grad():  # faster, and no graph is kept
    logits_per_image, logits_per_text = model(image, text)
print(logits_per_image.softmax(dim=-1).numpy())
"""

from . import clip, runtime, simple_tokenizer
from .clip import available_models, load, tokenize, weights_file
from .errors import ClipError

__version__ = "0.1.0"

__all__ = ["ClipError", "available_models", "clip", "load", "simple_tokenizer", "tokenize", "weights_file"]

runtime.prepare()  # before the caller's own `import jittor`, which reads the environment
