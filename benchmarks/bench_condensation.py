"""Steps of DC and MTT against the same in eager PyTorch; the memory of TESLA.

    python -m benchmarks.bench_condensation --out=results/benchmarks/condensation.json

DC: one move of the images: 10 x 256 real images of 3 x 32 x 32, ConvNet of width 128,
one image per class, gradients matched layer by layer. MTT: one student of 50 steps on
one image per class, without augmentation, and the derivative through all of them.
PyTorch takes part where it is installed (the extra `bench`). `cpu` is processor time
per step, which other processes on the machine disturb less than `run`, the time on the
clock. TESLA: bytes that the compiled gradient needs besides its arguments and results,
at 5 and at 50 student steps, beside those of MTT.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import _measure
from ntk_privacy.distillation import gradient_matching, tesla, trajectory_matching
from ntk_privacy.models import ConvNet

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None

CLASSES, SHAPE = 10, (32, 32, 3)


def _net(width):
    layers, depth = [], SHAPE[2]
    for _ in range(3):
        layers += [
            torch.nn.Conv2d(depth, width, 3, padding=1),
            torch.nn.GroupNorm(width, width),
            torch.nn.ReLU(inplace=True),
            torch.nn.AvgPool2d(2),
        ]
        depth = width
    return torch.nn.Sequential(
        *layers, torch.nn.Flatten(), torch.nn.Linear(16 * width, CLASSES)
    )


def _torch_images(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2).contiguous()


class TheirDC:
    """The loop of the released code: one class after the other, then SGD."""

    def __init__(self, x, images, options):
        self.x, self.images = _torch_images(x), _torch_images(images).requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=0.1, momentum=0.5)
        self.options, self.draw = options, np.random.default_rng(0)

    @staticmethod
    def distance(real, synthetic):
        total = 0.0
        for a, b in zip(real, synthetic, strict=True):
            if a.ndim > 1:
                u, v = a.reshape(len(a), -1), b.reshape(len(b), -1)
                norms = u.norm(dim=1) * v.norm(dim=1) + 1e-6
                total = total + (1 - (u * v).sum(1) / norms).sum()
        return total

    def __call__(self):
        net = _net(self.options.width)
        params, loss = list(net.parameters()), 0.0
        each = len(self.x) // CLASSES
        for c in range(CLASSES):
            rows = self.draw.permutation(each)[: self.options.batch] * CLASSES + c
            known = torch.full((len(rows),), c)
            value = F.cross_entropy(net(self.x[rows]), known)
            real = [g.detach() for g in torch.autograd.grad(value, params)]
            value = F.cross_entropy(net(self.images[c : c + 1]), known[:1])
            found = torch.autograd.grad(value, params, create_graph=True)
            loss = loss + self.distance(real, found)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return np.asarray(loss.item())


class TheirMTT:
    """Parameters as tensors, a graph through every step of the student."""

    def __init__(self, images, options):
        self.images = _torch_images(images).requires_grad_()
        self.step_size = torch.tensor(0.01, requires_grad=True)
        self.optimizer = torch.optim.SGD(
            [
                {"params": [self.images], "lr": 1.0},
                {"params": [self.step_size], "lr": 1e-7},
            ],
            momentum=0.5,
        )
        self.options, self.net = options, _net(options.width)
        self.start = {k: p.detach() for k, p in self.net.named_parameters()}
        self.end = {k: 0.99 * p for k, p in self.start.items()}
        self.labels = torch.arange(CLASSES)

    def __call__(self):
        params = {k: p.clone().requires_grad_() for k, p in self.start.items()}
        for _ in range(self.options.student_steps):
            logits = torch.func.functional_call(self.net, params, (self.images,))
            value = F.cross_entropy(logits, self.labels)
            grads = torch.autograd.grad(value, list(params.values()), create_graph=True)
            params = {
                k: p - self.step_size * g
                for (k, p), g in zip(params.items(), grads, strict=True)
            }
        gap = sum((params[k] - self.end[k]).square().sum() for k in params)
        far = sum((self.start[k] - self.end[k]).square().sum() for k in params)
        self.optimizer.zero_grad()
        (gap / far).backward()
        self.optimizer.step()
        return np.asarray((gap / far).item())


class Ours:
    """One step of `distill` from the last state."""

    def __init__(self, distill, x, classes, **options):
        self.data, self.state = (x, classes), None
        self.distill, self.options = distill, options

    def __call__(self):
        done = 0 if self.state is None else int(self.state.steps)
        out = self.distill(
            *self.data, **self.options, num_steps=done + 1, state=self.state, chunk=1
        )
        self.state = out.state
        return out.images


def _temporary_bytes(slope, images, start, end, model, student_steps):
    targets = jnp.eye(CLASSES)

    def value(images, step_size, start, end, key):
        return slope(
            images, targets, step_size, start, end,
            model=model, key=key, student_steps=student_steps, operations=(),
        )  # fmt: skip

    arguments = (images, jnp.asarray(0.01), start, end, jax.random.key(0))
    compiled = jax.jit(value).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def main() -> None:
    options = _measure.arguments(
        repeats=3, width=128, batch=256, student_steps=50, threads=2
    )
    key = jax.random.key(0)
    x = jax.random.normal(key, (CLASSES * options.batch, *SHAPE))
    classes = jnp.arange(len(x), dtype=jnp.int32) % CLASSES
    model = ConvNet(CLASSES, options.width)
    shared = {"model": model, "key": key, "images_per_class": 1}
    first = model.init_params(key, SHAPE)
    experts = jax.tree.map(lambda p: jnp.stack([p, 0.995 * p, 0.99 * p])[None], first)
    sides = {
        "DC": Ours(
            gradient_matching.distill, x, classes, **shared, batch_size=options.batch,
            optimizer=optax.sgd(0.1, momentum=0.5),
        ),
        "MTT": Ours(
            trajectory_matching.distill, x, classes, **shared, experts=experts,
            student_steps=options.student_steps, max_start_epoch=1, operations=(),
            optimizer=optax.sgd(1.0, momentum=0.5),
        ),
        "TESLA": Ours(
            tesla.distill, x, classes, **shared, experts=experts,
            student_steps=options.student_steps, max_start_epoch=1, operations=(),
            optimizer=optax.sgd(1.0, momentum=0.5),
        ),
    }  # fmt: skip
    if torch is not None:
        torch.set_num_threads(options.threads)
        images = x[:CLASSES]
        sides["PyTorch, DC"] = TheirDC(x, images, options)
        sides["PyTorch, MTT"] = TheirMTT(images, options)
    else:
        print("PyTorch is not installed: pip install torch. Ours alone:")
    times = _measure.interleaved(sides, repeats=options.repeats)
    rows = [
        {
            "side": name,
            "threads": options.threads,
            "batch": options.batch,
            "student_steps": options.student_steps,
            **times[name],
        }
        for name in sides
    ]
    for row in rows:
        ours = next((r for r in rows if r["side"] == row["side"][9:]), None)
        if ours is not None:
            row["run_over_ours"] = row["run"] / ours["run"]
            row["cpu_over_ours"] = row["cpu"] / ours["cpu"]
    end = jax.tree.map(lambda p: 0.99 * p, first)
    for name, slope in (("TESLA", tesla.slope), ("MTT", trajectory_matching._slope)):
        few, many = (
            _temporary_bytes(slope, x[:CLASSES], first, end, model, n) for n in (5, 50)
        )
        rows.append(
            {
                "side": f"{name}, memory",
                "bytes_5": few,
                "bytes_50": many,
                "bytes_50_over_5": many / few,
            }
        )
    _measure.report("condensation", rows, options.out)


if __name__ == "__main__":
    main()
