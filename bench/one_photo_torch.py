"""Print the five likeliest classes of a photograph with OpenAI's code on PyTorch.

python -m bench.one_photo_torch PHOTO adapter.npz MODEL.pt
"""

import sys

import numpy as np
import torch
from PIL import Image

from tests.golden.record_clip import openai


def main(argv=None):
    photo, adapter, weights = sys.argv[1:] if argv is None else argv
    model, preprocess = openai()[0].load(weights, device="cpu")
    adapter = {name: torch.from_numpy(value) for name, value in np.load(adapter).items() if value.dtype.kind == "f"}
    # either may be missing; docs/design.md has the format
    weight, bias = adapter.get("weight", adapter["scale"] * adapter["text"]), adapter.get("bias", 0)
    with torch.inference_mode():
        f = torch.nn.functional.normalize(model.encode_image(preprocess(Image.open(photo)).unsqueeze(0)).float())
        cached = (adapter["beta"] * (f @ adapter["keys"].T - 1)).exp() @ adapter["values"]
        print((f @ weight.T + bias + adapter["alpha"] * cached).softmax(dim=1).topk(5))


if __name__ == "__main__":
    main()
