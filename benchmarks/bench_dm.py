"""A step of DM at the paper's size, ours against the same in eager PyTorch.

    python -m benchmarks.bench_dm --out=results/benchmarks/dm.json

10 x 256 real images and 500 synthetic ones of 3 x 32 x 32, ConvNet of width 128, one
siamese augmentation per class. Sides: ours with the plain mean, ours with the
calibrated one (RDM-DC), and PyTorch with both layouts of memory, where it is installed
(the extra `bench`). `cpu` is processor time per step, which other processes on the
machine disturb less than `run`, the time on the clock. On a busy machine threads that
wait for each other say little: `taskset -c 0` and `--threads=1` compare on one core.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _measure
from ntk_privacy.distillation import distribution_matching, robust_mean
from ntk_privacy.models import ConvNet

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

CLASSES, IMAGES = 10, 512


def _net(width):
    layers, depth = [], 3
    for _ in range(3):
        layers += [
            torch.nn.Conv2d(depth, width, 3, padding=1),
            torch.nn.GroupNorm(width, width),
            torch.nn.ReLU(inplace=True),
            torch.nn.AvgPool2d(2),
        ]
        depth = width
    return torch.nn.Sequential(*layers, torch.nn.Flatten())


def _warped(x, matrix):
    theta = torch.cat([matrix, torch.zeros(2, 1)], 1)[None].expand(len(x), 2, 3)
    grid = F.affine_grid(theta, x.shape, align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def _augmented(pair, draw):
    """One operation, its parameters drawn once, on both batches of a class."""
    op, u = draw.integers(6), draw.uniform(size=3)
    shift, side = (u[:2] * 9).astype(int) - 4, (u[:2] * 33).astype(int)
    angle = math.radians(30 * u[0] - 15)
    cos, sin = math.cos(angle), math.sin(angle)

    def color(x):
        x = x + (u[0] - 0.5)
        mean = x.mean(1, keepdim=True)
        x = (x - mean) * (2 * u[1]) + mean
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * (u[2] + 0.5) + mean

    def crop(x):
        padded = F.pad(x, (4, 4, 4, 4))
        return padded[:, :, 4 + shift[0] : 36 + shift[0], 4 + shift[1] : 36 + shift[1]]

    def cutout(x):
        mask = torch.ones(32, 32)
        top, left = np.maximum(side - 8, 0)
        mask[top : side[0] + 8, left : side[1] + 8] = 0
        return x * mask

    def flip(x):
        return x.flip(3) if u[0] < 0.5 else x

    def scale(x):
        factors = 1 / 1.2 + u[:2] * (1.2 - 1 / 1.2)
        return _warped(x, torch.diag(torch.tensor(factors, dtype=torch.float32)))

    def rotate(x):
        return _warped(x, torch.tensor([[cos, -sin], [sin, cos]]))

    function = (color, crop, cutout, flip, scale, rotate)[op]
    return [function(x) for x in pair]


class Theirs:
    """The loop of the released code: one class after the other, then SGD."""

    def __init__(self, x, images, options, layout):
        def arranged(a):
            a = torch.tensor(np.asarray(a)).permute(0, 3, 1, 2)
            return a.contiguous(memory_format=layout)

        self.x, self.images = arranged(x), arranged(images).requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=1.0, momentum=0.5)
        self.options, self.layout = options, layout
        self.draw = np.random.default_rng(0)

    def __call__(self):
        net = _net(self.options.width).to(memory_format=self.layout)
        for p in net.parameters():
            p.requires_grad_(False)
        loss, ipc = 0.0, len(self.images) // CLASSES
        for c in range(CLASSES):
            rows = c * IMAGES + self.draw.permutation(IMAGES)[: self.options.batch]
            pair = (self.x[rows], self.images[c * ipc : (c + 1) * ipc])
            real, synthetic = (net(a) for a in _augmented(pair, self.draw))
            gap = real.detach().mean(0) - synthetic.mean(0)
            loss = loss + gap.square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return np.asarray(loss.item())


def main() -> None:
    options = _measure.arguments(repeats=5, width=128, batch=256, ipc=50, threads=2)
    key = jax.random.key(0)
    shape = (CLASSES * IMAGES, 32, 32, 3)
    x = jax.random.normal(key, shape)
    classes = jnp.repeat(jnp.arange(CLASSES, dtype=jnp.int32), IMAGES)
    start = distribution_matching.init(
        x, classes, key=key, images_per_class=options.ipc
    )
    model, sgd = ConvNet(CLASSES, options.width), optax.sgd(1.0, momentum=0.5)

    class Ours:
        def __init__(self, mean_fn):
            self.state, self.mean_fn = start, mean_fn

        def __call__(self):
            self.state = distribution_matching.distill(
                x, classes, model=model, key=key, images_per_class=options.ipc,
                num_steps=int(self.state.steps) + 1, batch_size=options.batch,
                mean_fn=self.mean_fn, optimizer=sgd, state=self.state, chunk=1,
            ).state  # fmt: skip
            return self.state.images

    sides = {
        "DM": Ours(robust_mean.mean),
        "RDM-DC": Ours(robust_mean.calibrated(rate=0.1)),
    }
    if torch is not None:
        torch.set_num_threads(options.threads)
        torch.set_default_device(_measure.peer_device())
        for name, layout in (
            ("PyTorch, DM", torch.contiguous_format),
            ("PyTorch, DM, channels last", torch.channels_last),
        ):
            sides[name] = Theirs(x, start.images, options, layout)
    else:
        print("PyTorch is not installed: pip install torch. Ours alone:")
    times = _measure.interleaved(sides, repeats=options.repeats)
    rows = [
        {
            "side": name,
            "threads": options.threads,
            **times[name],
            "run_over_dm": times[name]["run"] / times["DM"]["run"],
            "cpu_over_dm": times[name]["cpu"] / times["DM"]["cpu"],
        }
        for name in sides
    ]
    _measure.report("dm", rows, options.out)


if __name__ == "__main__":
    main()
