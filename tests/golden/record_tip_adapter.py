"""Record what Tip-Adapter-F as published gives in PyTorch on a small made-up task: the golden file of
test_tip_adapter.py.

In an environment of its own (never the project's):

    pip install torch==2.13.0 "numpy<2"
    python tests/golden/record_tip_adapter.py

Writes beside itself tip_adapter_f.npz: the task, and the keys after each epoch in two cases, "whole" (all rows in one
batch, so that their order does not matter) and "batches" (more rows than a batch, in the order that numpy's generator
gives for the seed). The loop follows github.com/gaopengcuhk/Tip-Adapter, main_imagenet.py: a linear layer without bias,
AdamW with eps 1e-4 and else PyTorch's defaults, a cosine step after each batch.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

CLASSES, WIDTH, SCALE, ALPHA, BETA, EPOCHS, SEED = 5, 16, 100.0, 2.0, 3.0, 6, 7


def unit_rows(rng, *shape):
    rows = rng.normal(size=shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def published(features, labels, text, keys, values, lr, batch_size):
    """The keys after each epoch, (EPOCHS, N, D)."""
    features, labels, text, values = map(torch.from_numpy, (features, labels, text, values))
    adapter = torch.nn.Linear(keys.shape[1], keys.shape[0], bias=False)
    adapter.weight = torch.nn.Parameter(torch.from_numpy(keys.copy()))
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=lr, eps=1e-4)
    batches = -(-len(features) // batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * batches)
    rng, after = np.random.default_rng(SEED), []
    for _ in range(EPOCHS):
        for rows in torch.from_numpy(rng.permutation(len(features))).split(batch_size):
            cached = (-(BETA - BETA * adapter(features[rows]))).exp() @ values
            loss = F.cross_entropy(SCALE * features[rows] @ text.T + cached * ALPHA, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
        after.append(adapter.weight.detach().numpy().copy())
    return np.stack(after)


def main():
    rng = np.random.default_rng(SEED)
    made = {"scale": SCALE, "alpha": ALPHA, "beta": BETA, "seed": SEED, "text": unit_rows(rng, CLASSES, WIDTH)}
    # a large step makes Adam's terms, weight decay and the schedule tell in six epochs
    for case, shots, views, lr in (("whole", 4, 3, 0.05), ("batches", 30, 4, 0.001)):
        labels = np.arange(CLASSES).repeat(shots)
        features = unit_rows(rng, len(labels), views, WIDTH)
        keys = features.mean(axis=1)
        keys /= np.linalg.norm(keys, axis=1, keepdims=True)
        after = published(
            features.reshape(-1, WIDTH),
            labels.repeat(views),
            made["text"],
            keys,
            np.eye(CLASSES, dtype=np.float32)[labels],
            lr,
            batch_size=256,
        )
        made.update({f"{case}_features": features, f"{case}_labels": labels, f"{case}_lr": lr, f"{case}_after": after})
    np.savez(Path(__file__).parent / "tip_adapter_f.npz", **made)


if __name__ == "__main__":
    main()
