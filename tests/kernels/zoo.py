"""Small networks of many kinds, as `(apply_fn, params, image_shape)`."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

from ntk_privacy.models import MLP

WIDE = {"param_dtype": jnp.float64, "dtype": jnp.float64}


class ConvNet(nn.Module):
    """Convolutions of several strides and paddings, both poolings."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), **WIDE)(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = jnp.tanh(nn.Conv(3, (3, 2), strides=(2, 1), padding="VALID", **WIDE)(x))
        x = nn.Conv(4, (3, 3), kernel_dilation=2, padding="CIRCULAR", **WIDE)(x)
        return nn.Dense(3, **WIDE)(x.reshape(x.shape[0], -1))


class Block(nn.Module):
    width: int
    stride: int

    @nn.compact
    def __call__(self, x):
        norm = {"use_running_average": True, **WIDE}
        y = nn.Conv(self.width, (3, 3), self.stride, use_bias=False, **WIDE)(x)
        y = nn.relu(nn.BatchNorm(**norm)(y))
        y = nn.BatchNorm(**norm)(nn.Conv(self.width, (3, 3), use_bias=False, **WIDE)(y))
        if x.shape != y.shape:
            x = nn.Conv(self.width, (1, 1), self.stride, use_bias=False, **WIDE)(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Two residual blocks, frozen batch statistics, global mean."""

    @nn.compact
    def __call__(self, x):
        x = Block(4, 2)(Block(3, 1)(x))
        return nn.Dense(2, **WIDE)(x.mean((1, 2)))


class Attention(nn.Module):
    """Dense layers over tokens, layer norm, a position table, tied twice."""

    @nn.compact
    def __call__(self, x):
        tokens = x.reshape(x.shape[0], -1, 4)
        tied = nn.Dense(4, **WIDE)
        table = self.param("table", nn.initializers.normal(), tokens.shape[1:])
        y = tied(tokens) + table[None].astype(x.dtype)
        y = tied(nn.LayerNorm(**WIDE)(y))
        y = nn.MultiHeadDotProductAttention(2, deterministic=True, **WIDE)(y, y)
        y = nn.remat(nn.Dense)(3, **WIDE)(y)
        return nn.Dense(2, **WIDE)(y.mean(1))


class Grouped(nn.Module):
    """Uses that are no plain layer: groups, transposes, a kernel used as its square."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (3, 3), feature_group_count=3, **WIDE)(x)
        x = nn.ConvTranspose(4, (3, 3), (2, 2), **WIDE)(x)
        x = nn.relu(x).mean((1, 2))
        w = self.param("w", nn.initializers.normal(), (4, 4), jnp.float64)
        x = x @ w + jnp.einsum("io,ni->no", w, x) + (w.T @ x.T).T
        v = self.param("v", nn.initializers.normal(), (4, 2), jnp.float64)
        return x @ jnp.tanh(v)


class Plain(nnx.Module):
    """An nnx network, with batch norm and dropout in evaluation."""

    def __init__(self, rngs, **dtypes):
        self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs, **dtypes)
        self.norm = nnx.BatchNorm(4, rngs=rngs, **dtypes)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.dense = nnx.Linear(4, 2, rngs=rngs, **dtypes)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        return self.dense(self.dropout(x.mean((1, 2))))


def linen(module, shape=(5, 5, 3), seed=0):
    """Noise on every parameter: zero biases would hide mistakes."""
    x = jnp.zeros((1, *shape), jnp.float64)
    variables = jax.jit(module.init)(jax.random.key(seed), x)
    variables = jax.tree.map(
        lambda a: a + 0.1 * jnp.abs(jnp.sin(jnp.arange(a.size)).reshape(a.shape)),
        variables,
    )
    rest = {name: value for name, value in variables.items() if name != "params"}

    def apply_fn(params, x):
        return module.apply({"params": params, **rest}, x)

    return apply_fn, variables["params"], shape


def of_nnx(*, training=False):
    # Its running averages are float32 whatever it is told.
    model = Plain(nnx.Rngs(0), **({} if training else WIDE))
    if not training:
        model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def apply_fn(params, x):
        return nnx.merge(graph, params, rest)(x)

    return apply_fn, params, (4, 4, 3)


def mlp(num_outputs, **kwargs):
    return linen(MLP((7, 5), num_outputs, **kwargs), (2, 3, 1))


NETWORKS = {
    "mlp": lambda: mlp(1),
    "mlp_ntk": lambda: mlp(3, parametrization="ntk"),
    "mlp_some_biases": lambda: mlp(2, use_bias=(True, False, False)),
    "convnet": lambda: linen(ConvNet(), (6, 6, 3)),
    "resnet": lambda: linen(ResNet(), (4, 4, 3)),
    "attention": lambda: linen(Attention(), (4, 2, 1)),
    "grouped": lambda: linen(Grouped(), (3, 3, 3)),
    "nnx": of_nnx,
}
