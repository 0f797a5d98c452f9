"""One contract for every kernel that has a name: a function of images, one record."""

import jax
import numpy as np
import pytest

from ntk_privacy.kernels import infinite, infinite_conv, named

X = jax.random.normal(jax.random.key(0), (4, 3, 3, 1), np.float32)
KEY = jax.random.key(1)


def _kernel(name, **given):
    row = named.KERNELS[name]
    return row.run(named.Problem(X, 2), row.configured(**given), key=KEY)


@pytest.mark.parametrize("name", named.KERNELS)
def test_it_is_a_kernel_of_images(name, request):
    if name.startswith("neural"):
        request.getfixturevalue("nt")
    made = _kernel(name, depth=1)
    whole = np.asarray(made.fn(X))
    assert whole.shape == (4, 4)
    np.testing.assert_allclose(whole, whole.T, rtol=1e-4)
    np.testing.assert_allclose(made.fn(X[:2], X[2:]), whole[:2, 2:], rtol=1e-4)
    assert (made.network is None) == ("training" not in named.KERNELS[name].wants)
    if made.network is not None:
        again = made.network.kernel_at(made.network.params_0)(X)
        np.testing.assert_array_equal(again, made.fn(X))


def test_flags_reach_the_kernel():
    options = {"depth": 1, "bias_std": 0.3, "weight_std": 1.5, "activation": "erf"}
    own = infinite.mlp(**options)(X)
    np.testing.assert_array_equal(_kernel("infinite_mlp", **options).fn(X), own)
    wide = {"depth": 1, "parametrization": "standard", "width": 7}
    own = infinite.mlp(**wide)(X)
    np.testing.assert_array_equal(_kernel("infinite_mlp", **wide).fn(X), own)
    options = {"depth": 1, "head": "global_pool", "pooling": "avg"}
    own = infinite_conv.convnet(**options)(X)
    np.testing.assert_array_equal(_kernel("infinite_convnet", **options).fn(X), own)


@pytest.mark.parametrize("name", named.KERNELS)
def test_bad_values_are_refused_in_a_sentence(name):
    row = named.KERNELS[name]
    with pytest.raises(ValueError, match="depth=0 must be at least 1"):
        row.configured(depth=0)
    if "training" in row.wants:
        with pytest.raises(ValueError, match=r"budget=0\.0 must be above 0"):
            row.configured(budget=0.0)
        with pytest.raises(ValueError, match=r"budget=9\.54e-07 MiB: "):
            _kernel(name, budget=1e-9)
    else:
        with pytest.raises(ValueError, match=r"weight_std=-1\.0 must be at least 0"):
            row.configured(weight_std=-1.0)
