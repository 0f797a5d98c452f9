"""Trains a PyTorch MLP on 16 pictures by plain SGD, and exports it before and after.

    python -m examples.make_torch_mlp runs/torch

The folder gets the pictures, `before.safetensors` and `after.safetensors`, whose arrays
have PyTorch's names: `0.weight`, `0.bias`, `2.weight` and so on.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file

from examples import make_images


def main(folder: str) -> None:
    """Makes pictures, trains and exports."""
    images, classes = map(torch.as_tensor, make_images.make(folder))
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, 512),
        torch.nn.ReLU(),
        torch.nn.Linear(512, len(make_images.CLASSES)),
    )
    before = {name: leaf.clone() for name, leaf in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        outputs = net(images.reshape(len(images), -1))
        loss = torch.nn.functional.cross_entropy(outputs, classes)
        loss.backward()
        optimizer.step()
    save_file(before, pathlib.Path(folder, "before.safetensors"))
    save_file(net.state_dict(), pathlib.Path(folder, "after.safetensors"))
    print(f"loss {float(loss.detach()):.4f}; before and after are in {folder}")


if __name__ == "__main__":
    main(sys.argv[1])
