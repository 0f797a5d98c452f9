"""Every message names the argument, its value and what to do."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy import _checks
from ntk_privacy.models import MLP
from ntk_privacy.reconstruction import kkt, max_margin
from ntk_privacy.reconstruction.max_margin_settings import RELEASED


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: _checks.positive(a=1, width=0), "width=0 must be above 0."),
        (lambda: _checks.positive(rate=float("nan")), "rate=nan must be above 0."),
        (lambda: _checks.positive(rate=np.inf), "rate=inf must be above 0."),
        (lambda: _checks.at_least(1, chunk=0), "chunk=0 must be at least 1."),
        (lambda: _checks.at_least(0.5, x=-np.inf), "x=-inf must be at least 0.5."),
        (
            lambda: _checks.at_least(1, num_steps=2.5),
            "num_steps=2.5 must be a whole number, at least 1.",
        ),
        (
            lambda: _checks.at_least(1, inner_batch_size=np.float32(8)),
            "inner_batch_size=8.0 must be a whole number, at least 1.",
        ),
        (
            lambda: _checks.in_range(0, 1, momentum=1.5),
            "momentum=1.5 must lie in [0, 1].",
        ),
        (lambda: _checks.in_range(0, 1, p=np.nan), "p=nan must lie in [0, 1]."),
        (
            lambda: _checks.one_of(("kkt", "algebraic"), method="kk"),
            "method='kk' is unknown, did you mean kkt? Use one of kkt, algebraic.",
        ),
        (
            lambda: _checks.same_length(images=[1, 2], labels=np.zeros((3, 1))),
            "Lengths differ: images has 2 rows, labels has 3 rows; give one row per "
            "image to each.",
        ),
        (
            lambda: _checks.finite(params={"w": jnp.array([1.0, jnp.nan, jnp.inf])}),
            "params['w'] has 2 values that are NaN or infinite: lower the step size "
            "that produced it, or use an earlier snapshot.",
        ),
        (
            lambda: _checks.same_structure("params_0", {"w": 1}, "params_t", {"v": 1}),
            "params_0 and params_t differ in structure: give the parameters of one "
            "architecture before and after training.",
        ),
        (
            lambda: _checks.same_structure(
                "params_0", {"w": np.zeros(2)}, "params_t", {"w": np.zeros((2, 1))}
            ),
            "params_0['w'] has shape (2,) but params_t['w'] has (2, 1): give the "
            "parameters of one architecture before and after training.",
        ),
        (
            lambda: _checks.differ(
                "params_0", {"w": jnp.ones(2)}, "b", {"w": np.ones(2)}
            ),
            "params_0 and b are equal: nothing was learnt, so nothing can be read "
            "back; give the parameters before and after training.",
        ),
    ],
)
def test_the_message_is_one_sentence_with_the_remedy(call, message):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == message


@pytest.mark.parametrize("number", [1, 1.0, np.float32(1), np.int64(1), np.float64(1)])
def test_numbers_of_every_kind_pass(number):
    _checks.positive(x=number)
    _checks.at_least(1, x=number)
    _checks.in_range(number, 2, x=number)


@pytest.mark.parametrize("thing", ["8/255", None, [1], 1j, np.ones(2)])
def test_what_is_no_number_is_told_by_every_check(thing, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for check in (
        _checks.positive,
        lambda **v: _checks.at_least(1, **v),
        lambda **v: _checks.in_range(0, 1, **v),
    ):
        with pytest.raises(ValueError, match=r"eps=.* must be one number"):
            check(eps=thing)


def test_keys_are_keys():
    _checks.typed_key(key=jax.random.key(0), old=jax.random.PRNGKey(0))
    for wrong in (0, None, np.zeros(2, np.int32)):
        with pytest.raises(ValueError, match=r"key=.* is no key: .*random\.key\(0\)"):
            _checks.typed_key(key=wrong)
        with pytest.raises(ValueError, match=r"key=.* is no key"):
            _checks.key_data(key=wrong)
    with pytest.raises(ValueError, match=r"key has shape \(3,\): give one key"):
        _checks.typed_key(key=jax.random.split(jax.random.key(0), 3))
    other = jax.random.key(0, impl="rbg")
    _checks.typed_key(key=other)
    with pytest.raises(ValueError, match="not of JAX's default implementation"):
        _checks.key_data(key=other)
    same = jax.random.wrap_key_data(_checks.key_data(key=jax.random.key(3)))
    assert same == jax.random.key(3)


def test_sound_trees_pass():
    a, b = {"w": jnp.zeros(3)}, {"w": jnp.array([0.0, 0.0, 1e-30])}
    _checks.finite(a=a, b=b)
    _checks.same_structure("a", a, "b", b)
    _checks.differ("a", a, "b", b)
    _checks.same_length(a=[1], b=(2,))
    _checks.one_of([1, 2], x=2)


def test_reduced_precision_and_integer_leaves_are_checked_too():
    _checks.finite(tree=[jnp.ones(2, jnp.bfloat16), jnp.arange(3), 1.5])
    with pytest.raises(ValueError, match=r"tree\[0\] has 1 values"):
        _checks.finite(tree=[jnp.array([jnp.nan], jnp.bfloat16)])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e5m2"])
def test_attacks_are_not_run_in_half_precision(dtype):
    """There the squares of a change are 0, and images of zeros were no error.

    float32 holds half precision exactly: of an MLP, whose layers are known, it is
    widened; a foreign network is left to its owner.
    """
    model = MLP((4, 4), 1)
    pair = [
        jax.tree.map(
            lambda leaf: leaf.astype(dtype),
            model.init_params(jax.random.key(i), (2, 2, 1), jnp.float32),
        )
        for i in range(2)
    ]
    wide = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), one) for one in pair]
    options = {"key": jax.random.key(2), "image_shape": (2, 2, 1), "num_images": 2}
    for given in (pair, wide):
        attack = kkt.prepare(model, *given, bounds=(0.0, 1.0), **options)
        assert attack.problem.squared_norm.dtype == jnp.float32
        assert attack.problem.squared_norm > 0
        released = RELEASED["mnist_rbijxft7"]
        attack = max_margin.prepare(model, given[0], settings=released, **options)
        assert attack.state.images.dtype == jnp.float32
    told = f"is {dtype}, in which .* convert all leaves to float32"
    settings = dataclasses.replace(
        kkt.PAPER, form="parameter", project=False, first_layer=True
    )
    with pytest.raises(ValueError, match=told):
        kkt.prepare(
            model.apply_fn, *pair, bounds=(0.0, 1.0), settings=settings, **options
        )
    with pytest.raises(ValueError, match=told):
        _checks.full_precision(params={"w": pair[0], "v": 1.0})
    _checks.full_precision(params={"w": np.zeros(2, np.float32), "n": 3, "v": 1.0})
