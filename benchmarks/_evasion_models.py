"""Four small classifiers of CIFAR-10, and the same weights in PyTorch.

A ConvNet and a ResNet18 at 32 pixels, narrow enough for two cores, each trained plainly
and against PGD in l_inf. Seeds are fixed; weights are kept in a folder as npz.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_privacy import data
from ntk_privacy.evasion import losses
from ntk_privacy.models import ConvNet
from ntk_privacy.models.resnet import ResNet18
from ntk_privacy.reports.atomic import replacing

try:
    import torch
    from torch import nn
except ImportError:
    torch = nn = None

MEAN, SCALE = 0.47, 0.25
BATCH, PAD = 100, 4
AGREE = 1e-4


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is made; `robust` is training against `steps` steps of PGD."""

    net: str
    width: int
    robust: bool
    epochs: int
    rate: float = 3e-3
    eps: float = 4 / 255
    steps: int = 3

    @property
    def model(self) -> Any:
        if self.net == "convnet":
            return ConvNet(10, self.width)
        return ResNet18(10, self.width)


RECIPES = {
    "convnet": Recipe("convnet", 32, False, 12),
    "convnet_robust": Recipe("convnet", 32, True, 12),
    "resnet18": Recipe("resnet18", 8, False, 12),
    "resnet18_robust": Recipe("resnet18", 8, True, 12),
    # As wide as the published one, for an accelerator.
    "resnet18_64_robust": Recipe("resnet18", 64, True, 12),
}


def images(split: str = "test") -> tuple[np.ndarray, np.ndarray]:
    """Returns CIFAR-10 in file order: images (n, 32, 32, 3) in [0, 1], and labels."""
    raw = data.load_raw("cifar10")
    x = raw.images_test if split == "test" else raw.images_train
    y = raw.labels_test if split == "test" else raw.labels_train
    return (x / np.float32(255)).astype(np.float32), y.astype(np.int32)


def _seen(net: str, model: Any, variables: Any, x: Any, training: bool) -> Any:
    """Returns logits, and the running statistics, which a ConvNet has not."""
    params, stats = variables
    x = (x - MEAN) / SCALE
    if net == "convnet":
        return model.apply_fn(params, x), stats
    if training:
        return model.train_fn(params, stats, x)
    return model.eval_fn(params, stats, x), stats


def logits_of(net: str, width: int, variables: Any, x: Any) -> Any:
    """Returns the logits of a network by name, on images in [0, 1]."""
    model = Recipe(net, width, False, 0).model
    return _seen(net, model, variables, x, False)[0]


def _start(recipe: Recipe) -> Any:
    stats = () if recipe.net == "convnet" else recipe.model.init_stats()
    return recipe.model.init_params(jax.random.key(1), (32, 32, 3)), stats


@functools.partial(jax.jit, static_argnums=(0, 1))
def _epoch(recipe: Recipe, optimizer: Any, carry: Any, x: Any, y: Any) -> Any:
    read = functools.partial(_seen, recipe.net, recipe.model)

    def loss(params, stats, batch, labels, training):
        logits, stats = read((params, stats), batch, training)
        return jnp.mean(losses.cross_entropy(logits, labels, labels)), stats

    def attacked(params, stats, batch, labels):
        def climb(_, found):
            slope = jax.grad(loss, argnums=2, has_aux=True)(
                params, stats, found, labels, False
            )[0]
            found = found + recipe.eps / 2 * jnp.sign(slope)
            found = jnp.clip(found, batch - recipe.eps, batch + recipe.eps)
            return jnp.clip(found, 0, 1)

        return jax.lax.fori_loop(0, recipe.steps, climb, batch)

    def step(carry, rows):
        params, stats, state = carry
        batch, labels = x[rows], y[rows]
        if recipe.robust:
            batch = attacked(params, stats, batch, labels)
        slope, stats = jax.grad(loss, has_aux=True)(params, stats, batch, labels, True)
        update, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, update), stats, state), None

    rows = jnp.arange(len(x) // BATCH * BATCH).reshape(-1, BATCH)
    return jax.lax.scan(step, carry, rows)[0]


def _train(recipe: Recipe) -> Any:
    x, y = images("train")
    total = recipe.epochs * (len(x) // BATCH)
    schedule = optax.cosine_decay_schedule(recipe.rate, total)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)
    params, stats = _start(recipe)
    carry = params, stats, optimizer.init(params)
    draw = np.random.default_rng(0)
    for _ in range(recipe.epochs):
        order = draw.permutation(len(x))
        down, right = draw.integers(0, 2 * PAD + 1, size=(2, len(x)))
        flipped = np.where(draw.random(len(x)) < 0.5, -1, 1)
        padded = np.pad(x, ((0, 0), (PAD, PAD), (PAD, PAD), (0, 0)))
        shown = [
            padded[i, a : a + 32, b : b + 32][:, ::f]
            for i, a, b, f in zip(
                order, down[order], right[order], flipped[order], strict=True
            )
        ]
        carry = _epoch(recipe, optimizer, carry, np.stack(shown), y[order])
    return carry[:2]


def trained(name: str, folder: str | pathlib.Path) -> Any:
    """Returns the parameters and statistics of a recipe, trained if not yet kept."""
    recipe = RECIPES[name]
    path = pathlib.Path(folder) / f"{name}.npz"
    leaves, shape = jax.tree.flatten(_start(recipe))
    if not path.exists():
        found = jax.tree.leaves(_train(recipe))
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, *(np.asarray(leaf) for leaf in found))
    with np.load(path) as kept:
        values = [jnp.asarray(kept[f"arr_{i}"]) for i in range(len(leaves))]
    return jax.tree.unflatten(shape, values)


def ours(name: str, variables: Any) -> Any:
    """Returns `images -> logits` of trained weights."""
    recipe = RECIPES[name]
    read = functools.partial(logits_of, recipe.net, recipe.width)
    return jax.tree_util.Partial(read, variables)


def _torch_conv_net(params: Any, width: int) -> Any:
    layers: list[Any] = []
    for i in range(3):
        conv = nn.Conv2d(3 if i == 0 else width, width, 3, padding=1)
        norm = nn.GroupNorm(width, width)
        of_conv, of_norm = params[f"Conv_{i}"], params[f"Norm_{i}"]
        _set(conv.weight, np.transpose(of_conv["kernel"], (3, 2, 0, 1)))
        _set(conv.bias, of_conv["bias"])
        _set(norm.weight, np.ravel(of_norm["scale"]))
        _set(norm.bias, np.ravel(of_norm["bias"]))
        layers += [conv, norm, nn.ReLU(), nn.AvgPool2d(2)]
    linear = nn.Linear(16 * width, 10)
    # Features are flattened channel first there, channel last here.
    kernel = np.asarray(params["Linear"]["kernel"]).reshape(4, 4, width, 10)
    _set(linear.weight, kernel.transpose(3, 2, 0, 1).reshape(10, -1))
    _set(linear.bias, params["Linear"]["bias"])
    return nn.Sequential(*layers, nn.Flatten(), linear)


def _set(parameter: Any, value: Any) -> None:
    value = torch.tensor(np.array(value, np.float32))
    if parameter.shape != value.shape:
        raise ValueError(f"{tuple(value.shape)} does not fit {tuple(parameter.shape)}.")
    with torch.no_grad():
        parameter.copy_(value)


def _torch_pair(kernel: Any, affine: Any, moments: Any, stride: int) -> list[Any]:
    """Returns a convolution and its batch normalisation."""
    size, _, before, after = kernel.shape
    conv = nn.Conv2d(before, after, size, stride, size // 2, bias=False)
    norm = nn.BatchNorm2d(after)
    _set(conv.weight, np.transpose(kernel, (3, 2, 0, 1)))
    _set(norm.weight, affine["scale"])
    _set(norm.bias, affine["bias"])
    _set(norm.running_mean, moments.mean)
    _set(norm.running_var, moments.variance)
    return [conv, norm]


def _torch_res_net(params: Any, stats: Any) -> Any:
    class Block(nn.Module):
        def __init__(self, body, shortcut):
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x):
            return torch.relu(self.body(x) + self.shortcut(x))

    moments = iter(stats)

    def pair(at, layer, stride):
        return _torch_pair(
            at[f"conv_{layer}"], at[f"norm_{layer}"], next(moments), stride
        )

    layers: list[Any] = [*pair(params["stem"], "0", 1), nn.ReLU()]
    for stage in range(4):
        for i in range(2):
            at = params[f"stage_{stage}_block_{i}"]
            stride = 2 if stage and i == 0 else 1
            body = [*pair(at, "0", stride), nn.ReLU(), *pair(at, "1", 1)]
            shortcut = pair(at, "shortcut", stride) if "conv_shortcut" in at else []
            layers.append(Block(nn.Sequential(*body), nn.Sequential(*shortcut)))
    linear = nn.Linear(len(params["linear"]["kernel"]), 10)
    _set(linear.weight, np.transpose(params["linear"]["kernel"]))
    _set(linear.bias, params["linear"]["bias"])
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def theirs(name: str, variables: Any) -> Any:
    """Returns the same network in PyTorch, on images (n, 3, 32, 32) in [0, 1].

    Raises:
      AssertionError: its logits differ by more than 1e-4.
    """
    params, stats = variables
    recipe = RECIPES[name]

    class Scaled(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.body = body

        def forward(self, x):
            return self.body((x - MEAN) / SCALE)

    if recipe.net == "convnet":
        body = _torch_conv_net(params, recipe.width)
    else:
        body = _torch_res_net(params, stats)
    # No gradients of the weights are asked for, here as there.
    net = Scaled(body).eval().requires_grad_(False)
    x = images()[0][:50]
    # In full float32 on both sides, whatever an accelerator multiplies in.
    with torch.no_grad(), torch.backends.cudnn.flags(allow_tf32=False):
        found = net(to_torch(x)).cpu().numpy()
    with jax.default_matmul_precision("highest"):
        expected = np.asarray(ours(name, variables)(jnp.asarray(x)))
    gap = float(np.abs(found - expected).max())
    if not gap < AGREE:
        raise AssertionError(f"{name}: logits differ by {gap:.2g}, above {AGREE}.")
    return net


def to_torch(x: Any) -> Any:
    """Returns images as PyTorch has them: channel first."""
    return torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())
