"""ResNet18 against Flax's own layers, and what batch normalisation tells."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ntk_privacy.models import ConvNet, ResNet18
from ntk_privacy.models.resnet import BatchNormNetwork, Moments

SMALL = ResNet18(num_outputs=3, width=4, blocks=(1, 2))


class Twin(nn.Module):
    """The same network of Flax's layers, stem and blocks spelled out."""

    model: ResNet18
    train: bool

    @nn.compact
    def __call__(self, x):
        def conv(x, features, size, stride, padding, name):
            return nn.Conv(
                features,
                (size, size),
                stride,
                padding,
                use_bias=False,
                name=name,
                param_dtype=x.dtype,
            )(x)

        def norm(x, name):
            self.sow("intermediates", name + "_input", x)
            return nn.BatchNorm(
                use_running_average=not self.train,
                momentum=0.9,
                epsilon=1e-5,
                use_fast_variance=False,
                force_float32_reductions=False,
                name=name,
                param_dtype=x.dtype,
            )(x)

        m = self.model
        if m.stem == "imagenet":
            x = nn.relu(norm(conv(x, m.width, 7, 2, 3, "stem_conv_0"), "stem_norm_0"))
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        elif m.stem == "tiny224":
            x = nn.relu(norm(conv(x, m.width, 3, 2, 3, "stem_conv_0"), "stem_norm_0"))
        else:
            x = nn.relu(norm(conv(x, m.width, 3, 1, 1, "stem_conv_0"), "stem_norm_0"))
        for stage, count in enumerate(m.blocks):
            k = m.width * 2**stage
            for i in range(count):
                stride, at, before = 1 + (stage > 0 and i == 0), f"{stage}{i}", x
                x = nn.relu(norm(conv(x, k, 3, stride, 1, at + "c0"), at + "n0"))
                x = norm(conv(x, k, 3, 1, 1, at + "c1"), at + "n1")
                if stride > 1:
                    before = conv(before, k, 1, 2, 0, at + "cs")
                    before = norm(before, at + "ns")
                x = nn.relu(x + before)
        return nn.Dense(m.num_outputs, name="linear", param_dtype=x.dtype)(
            x.mean((1, 2))
        )


def names(model):
    """Pairs of a layer's name here and in the twin, in the order of the norms."""
    pairs = [(("stem", "0"), "stem_{}_0")]
    for stage, count in enumerate(model.blocks):
        for i in range(count):
            block, at = f"stage_{stage}_block_{i}", f"{stage}{i}"
            pairs += [((block, "0"), at + "{}0"), ((block, "1"), at + "{}1")]
            if stage and i == 0:
                pairs.append(((block, "shortcut"), at + "{}s"))
    return pairs


def translated(model, params, stats):
    out, running = {"linear": params["linear"]}, {}
    for ((block, layer), form), moments in zip(names(model), stats, strict=True):
        conv, norm = (
            form.format(*[word]) if "stem" in form else form.format(word[0])
            for word in ("conv", "norm")
        )
        out[conv] = {"kernel": params[block][f"conv_{layer}"]}
        out[norm] = params[block][f"norm_{layer}"]
        running[norm] = {"mean": moments.mean, "var": moments.variance}
    return {"params": out, "batch_stats": running}


def setting(model, size=8, n=4):
    keys = jax.random.split(jax.random.key(0), 4)
    params = model.init_params(keys[0], (size, size, 3), jnp.float64)
    # Norms away from the identity, statistics away from 0 and 1.
    leaves, tree = jax.tree.flatten(params)
    noise = jax.random.split(keys[1], len(leaves))
    params = tree.unflatten(
        [
            leaf + 0.1 * jax.random.normal(k, leaf.shape, leaf.dtype)
            for k, leaf in zip(noise, leaves, strict=True)
        ]
    )
    x = jax.random.normal(keys[2], (n, size, size, 3), jnp.float64)
    _, stats = jax.jit(model.train_fn)(params, model.init_stats(jnp.float64), x + 0.3)
    return params, stats, x


@pytest.mark.parametrize(
    ("stem", "size"),
    [
        ("cifar", 8),
        pytest.param("imagenet", 16, marks=pytest.mark.slow),
        ("tiny224", 8),
    ],
)
def test_equals_the_same_network_of_flax_layers(stem, size):
    model = ResNet18(num_outputs=3, width=4, stem=stem, blocks=(1, 2))
    params, stats, x = setting(model, size)
    variables = translated(model, params, stats)
    evaluated, seen = jax.jit(
        lambda v: Twin(model, False).apply(v, x, mutable=["intermediates"])
    )(variables)
    logits, moments = jax.jit(model.moments_fn)(params, stats, x)
    chex.assert_trees_all_close(logits, evaluated, rtol=1e-10, atol=1e-12)
    alone = jax.jit(model.eval_fn)(params, stats, x)
    chex.assert_trees_all_close(alone, logits, rtol=1e-10, atol=1e-12)
    assert len(moments) == len(names(model)) == model.num_norms
    for (_, form), found in zip(names(model), moments, strict=True):
        norm = form.format("norm") if "stem" in form else form.format("n")
        (entered,) = seen["intermediates"][norm + "_input"]
        chex.assert_trees_all_close(
            found, Moments(entered.mean((0, 1, 2)), entered.var((0, 1, 2))), rtol=1e-9
        )
    trained, after = jax.jit(
        lambda v: Twin(model, True).apply(v, x, mutable=["batch_stats"])
    )(variables)
    logits, new = jax.jit(model.train_fn)(params, stats, x)
    chex.assert_trees_all_close(logits, trained, rtol=1e-9, atol=1e-12)
    chex.assert_trees_all_close(model.apply_fn(params, x), logits, rtol=1e-12)
    for (_, form), old, now in zip(names(model), stats, new, strict=True):
        norm = form.format("norm") if "stem" in form else form.format("n")
        theirs = after["batch_stats"][norm]
        chex.assert_trees_all_close(now.mean, theirs["mean"], rtol=1e-9)
        # Flax keeps the biased variance; ours is PyTorch's.
        assert not np.allclose(now.variance, theirs["var"], rtol=1e-4)
        assert np.all((now.variance - 0.9 * old.variance) > 0)


def test_running_variance_is_unbiased_and_moves_by_a_tenth():
    params, stats, x = setting(SMALL)
    _, moments = SMALL.moments_fn(params, stats, x)
    _, after = SMALL.train_fn(params, stats, x)
    count = x.shape[0] * x.shape[1] * x.shape[2]
    # The stem's norm is the first: what enters it depends on no statistics.
    want = 0.9 * stats[0].variance + 0.1 * moments[0].variance * count / (count - 1)
    chex.assert_trees_all_close(after[0].variance, want, rtol=1e-12)


def test_no_gradient_comes_through_the_running_statistics():
    params, stats, x = setting(SMALL)

    def total(params):
        _, after = SMALL.train_fn(params, stats, x)
        return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(after))

    gradient = jax.jit(jax.grad(total))(params)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, params))


def test_the_full_network_is_torchvisions():
    model = ResNet18()
    shapes = jax.eval_shape(lambda: model.init_params(jax.random.key(0), (32, 32, 3)))
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert size == 11_173_962  # torchvision's 11,181,642 with the stem for 32 pixels
    imagenet = ResNet18(1000, stem="imagenet")
    shapes = jax.eval_shape(
        lambda: imagenet.init_params(jax.random.key(0), (224, 224, 3))
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 11_689_512
    assert model.num_norms == 20


def test_initial_law():
    params = ResNet18(width=16).init_params(jax.random.key(1), (32, 32, 3))
    kernel = params["stage_3_block_1"]["conv_1"]
    std = float(jnp.std(kernel))
    assert std == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    bound = 128**-0.5
    largest = float(jnp.max(jnp.abs(params["linear"]["kernel"])))
    assert 0.95 * bound < largest <= bound


def test_contract_and_refusals():
    assert isinstance(SMALL, BatchNormNetwork)
    assert not isinstance(ConvNet(norm="batch"), BatchNormNetwork)
    params, stats, x = setting(SMALL)
    with pytest.raises(ValueError, match="stats has 3 layers but the network"):
        SMALL.eval_fn(params, stats[:3], x)
    with pytest.raises(ValueError, match="stem='vgg' is unknown"):
        ResNet18(stem="vgg")
    with pytest.raises(ValueError, match="width=0"):
        ResNet18(width=0)
    # Evaluation takes each image by itself; training does not.
    alone = SMALL.eval_fn(params, stats, x[:1])
    chex.assert_trees_all_close(alone, SMALL.eval_fn(params, stats, x)[:1], rtol=1e-10)
