"""CLIP on Jittor, with the names and meanings of OpenAI's `clip`: load, tokenize, available_models.

    import jclip as clip
    from PIL import Image

    model, preprocess = clip.load("ViT-B-32.pkl")
    image = preprocess(Image.open("photo.jpg")).unsqueeze(0)
    text = clip.tokenize(["a diagram", "a dog", "a cat"])
    logits_per_image, logits_per_text = model(image, text)
    print(logits_per_image.softmax(dim=-1).numpy())
"""
from . import runtime
from .errors import ClipError

runtime.prepare()

__all__ = ["ClipError"]
