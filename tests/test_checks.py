"""Every message names the argument, its value and what to do."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ntk_privacy import _checks, kip
from ntk_privacy.distillation import distribution_matching, gradient_matching
from ntk_privacy.models import MLP, ConvNet, ResNet18
from ntk_privacy.reconstruction import kkt, max_margin
from ntk_privacy.reconstruction.max_margin_settings import RELEASED
from ntk_privacy.training import classification, squeeze, victim


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
            lambda: _checks.named(methods=("dm", "dc", "dm")),
            "methods names dm twice: name it once.",
        ),
        (lambda: _checks.named(attacks=()), "attacks is empty: name one at least."),
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


def test_a_flag_is_no_count():
    with pytest.raises(ValueError, match="num_images=True must be a whole number"):
        _checks.at_least(1, num_images=True)


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


def _takers_of_keys():
    """Entry points that split a key before anything else can tell."""
    x, y = np.zeros((4, 8, 8, 1), np.float32), np.arange(4) % 2
    net, mlp = ConvNet(width=2, depth=1, num_outputs=2), MLP((4,), 1)
    params = mlp.init_params(jax.random.key(0), (8, 8, 1), jnp.float32)
    resnet = ResNet18(width=2, num_outputs=2)
    some, shaped = {"num_images": 2}, {"image_shape": (8, 8, 1)}
    return {
        "kip": lambda key: kip.distill(
            x, x[:, 0, :2, 0], kernel_fn=jnp.dot, key=key, images_per_class=1
        ),
        "dm": lambda key: distribution_matching.distill(x, y, model=net, key=key),
        "dc": lambda key: gradient_matching.distill(x, y, model=net, key=key),
        "staggered": lambda key: classification.staggered(x, y, model=net, key=key),
        "squeeze": lambda key: squeeze.train(x, y, model=resnet, key=key),
        "victim": lambda key: victim.train(x, x[:, 0, 0], key=key),
        "kkt": lambda key: kkt.prepare(
            mlp, params, params, key=key, bounds=(0.0, 1.0), **some, **shaped
        ),
        "init_params": lambda key: resnet.init_params(key, (8, 8, 1)),
    }


@pytest.mark.parametrize("name", sorted(_takers_of_keys()))
def test_every_taker_of_a_key_tells_what_is_none(name, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    take = _takers_of_keys()[name]
    with pytest.raises(ValueError, match="key=0 is no key"):
        take(0)
    with pytest.raises(ValueError, match=r"key has shape \(3,\): give one key"):
        take(jax.random.split(jax.random.key(0), 3))


def test_networks_take_an_array_of_keys(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    x, y = np.zeros((4, 8, 8, 1), np.float32), np.arange(4) % 2
    model, one = ConvNet(width=2, depth=1, num_outputs=2), jax.random.key(0)
    for wrong in (one, one[None, None], one[None][:0], jax.random.PRNGKey(0)):
        with pytest.raises(ValueError, match=r"keys has shape .* one key per network"):
            classification.train(x, y, model=model, keys=wrong, num_epochs=1)
    with pytest.raises(ValueError, match="keys=0 is no key"):
        classification.train(x, y, model=model, keys=0, num_epochs=1)
    _checks.key_array(keys=jax.random.split(one, 2), old=np.zeros((3, 2), np.uint32))


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
