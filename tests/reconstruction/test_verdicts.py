"""Honest and dishonest victims by attack: what each attack says of its own result."""

import dataclasses
import functools

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from ntk_privacy import _tree, data
from ntk_privacy.evaluation import evaluate
from ntk_privacy.kernels import stationarity, structured
from ntk_privacy.models import MLP, fitting
from ntk_privacy.reconstruction import explanation, judging, kkt, max_margin, replay
from ntk_privacy.reconstruction.verdict import Verdict
from ntk_privacy.training import linearized, logistic

SHAPE = (8, 8, 1)
WIDTH = 128
# Not the slope of a ReLU anywhere, or a function of the other units.
ACTIVATIONS = {
    "gelu": nn.gelu,
    "tanh": jnp.tanh,
    "layernorm": lambda h: nn.standardize(nn.relu(h), axis=-1, epsilon=1e-6),
}


@functools.cache
def _digits(n):
    digits = data.load("digits", num_train=n, key=jax.random.key(0))
    x = jnp.asarray(digits.x_train, jnp.float32)
    return digits, x, jnp.asarray(digits.y_train, jnp.float32)


def _start(seed=1, **changes):
    model = MLP((WIDTH, WIDTH), **changes)
    return model, model.init_params(jax.random.key(seed), SHAPE)


def _linearized(model, params_0, x, y, loss=1e-8):
    kernel = structured.ntk(model, params_0, x, trace_outputs=False)
    spectrum = linearized.decompose(kernel, model.apply_fn(params_0, x), y)
    time = linearized.time_at_loss(spectrum, loss)
    duals = linearized.duals(spectrum, linearized.gradient_flow(time))
    return linearized.params_at(model.apply_fn, params_0, x, duals)


def _steps(params, x, y, optimizer, *, activation=nn.relu, steps=300, batch=None):
    """Trains an MLP of any activation on the squared loss, features moving."""

    def apply_fn(params, x):
        h = x.reshape(len(x), -1)
        for i in range(3):
            layer = params[f"Dense_{i}"]
            h = h @ layer["kernel"] + layer["bias"][None]
            h = activation(h) if i < 2 else h
        return h

    def step(carry, key):
        params, state = carry
        i = jax.random.permutation(key, len(x))[: batch or len(x)]
        grads = jax.grad(lambda p: 0.5 * jnp.mean((apply_fn(p, x[i]) - y[i]) ** 2))
        updates, state = optimizer.update(grads(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):
        keys = jax.random.split(jax.random.key(5), steps)
        run = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))
        (params, _), _ = run((params, optimizer.init(params)))
    return params


@functools.cache
def _victim(name, n=8):
    """Returns parameters before and after, of which some are not what they seem."""
    _, x, y = _digits(n)
    model, params_0 = _start()
    _, other = _start(77)
    sgd = optax.sgd(0.01, momentum=0.9)
    if name in ("linearized", "early", "permuted", "bounds"):
        params_t = _linearized(model, params_0, x, y, 1e-1 if name == "early" else 1e-8)
        if name == "permuted":
            order = jax.random.permutation(jax.random.key(3), WIDTH)
            change = _tree.sub(params_t, params_0)
            change["Dense_1"] = jax.tree.map(lambda a: a[..., order], change["Dense_1"])
            params_t = _tree.add(params_0, change)
        return params_0, params_t
    if name == "noise":
        params_t = _linearized(model, params_0, x, y)
        keys = iter(jax.random.split(jax.random.key(9), 6))
        return params_0, jax.tree.map(
            lambda a, b: (
                b + jnp.std(b - a) * jax.random.normal(next(keys), b.shape, b.dtype)
            ),
            params_0,
            params_t,
        )
    if name == "other parametrization":
        ntk, params_0 = _start(parametrization="ntk")
        return params_0, _linearized(ntk, params_0, x, y)
    if name == "unrelated":
        return params_0, other
    if name == "other start":
        return other, _steps(params_0, x, y, sgd)
    if name in ACTIVATIONS:
        return params_0, _steps(params_0, x, y, sgd, activation=ACTIVATIONS[name])
    optimizer, batch = {
        "momentum": (sgd, None),
        "minibatch": (optax.sgd(0.03), 4),
        "adam": (optax.adam(1e-3), None),
        "decay": (optax.chain(optax.add_decayed_weights(1e-2), sgd), None),
    }[name]
    return params_0, _steps(params_0, x, y, optimizer, batch=batch)


def _search(name, n=8, num_steps=600, points="both", **changes):
    digits, x, _ = _digits(n)
    bounds = digits.bounds if name != "bounds" else (0.0, 1.0)
    settings = kkt.FAST if points == "init" else kkt.STANDARD
    found = kkt.reconstruct(
        MLP((WIDTH, WIDTH)),
        *_victim(name, n),
        key=jax.random.key(2),
        image_shape=SHAPE,
        num_images=2 * n,
        bounds=bounds,
        points=points,
        settings=dataclasses.replace(settings, num_steps=num_steps),
        **changes,
    )
    told = evaluate(x, found.images, mean=digits.mean)
    norms = np.linalg.norm(np.asarray(x).reshape(n, -1), axis=1)[told.train_index]
    return found, float(np.median(told.distances / norms))


LINEAR = {"linearized", "early", "permuted", "bounds", "noise", "other parametrization"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("linearized", {"approximate"}),
        ("momentum", {"approximate"}),
        ("unrelated", {"assumptions do not hold"}),
        ("adam", {"assumptions do not hold"}),
        ("bounds", {"assumptions do not hold"}),
        ("layernorm", {"nothing found", "assumptions do not hold"}),
        ("gelu", {"nothing found", "assumptions do not hold"}),
    ],
)
def test_a_search_says_whether_its_images_are_anything(name, words):
    found, error = _search(name, points="init" if name in LINEAR else "both")
    assert found.verdict.word in words, found.verdict
    # Measured: 0.00 and 0.13 of those that are approximate, 0.35 to 2.3 of the others.
    assert (error < 0.25) == (found.verdict.word == "approximate"), error
    assert "\n" not in found.verdict.reason


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 24])
@pytest.mark.parametrize(
    "name",
    [
        *(
            "linearized",
            "early",
            "momentum",
            "minibatch",
            "permuted",
            "noise",
            "bounds",
        ),
        *("other parametrization", "unrelated", "other start", "adam", "decay"),
        *ACTIVATIONS,
    ],
)
def test_no_search_flatters_its_images(name, n):
    """Approximate exactly where training was honest, at 3 and at 16 units an image."""
    points = "init" if name in LINEAR else "both"
    found, error = _search(name, n, num_steps=1200, points=points)
    honest = name in ("linearized", "early", "momentum", "minibatch")
    # Measured: at most 0.25 of the honest, at least 0.31 of the others.
    approximate = found.verdict.word == "approximate"
    if honest and n == 24 and name not in LINEAR:
        # On the edge: 89 to 92% explained, so the word may be withheld.
        assert approximate or found.verdict.word == "nothing found"
    else:
        assert approximate == honest, found.verdict
    if approximate:
        assert error < 0.35
    if name in ("unrelated", "other start", "adam", "decay") and n == 8:
        assert found.verdict.word == "assumptions do not hold"


def test_any_network_is_judged_as_an_mlp_is():
    """Rows of J J^T from single gradients, against the Gram products of an MLP."""
    _, x, _ = _digits(8)
    model, _ = _start()
    params_0, params_t = _victim("momentum")
    features, change = (params_0, params_t), _tree.sub(params_t, params_0)
    fast = explanation.parts(model, features, change, x)
    slow = explanation.parts(model.apply_fn, features, change, x)
    for (name, a), (_, b) in zip(fast.items(), slow.items(), strict=True):
        scale = np.abs(a.kernel).max()
        np.testing.assert_allclose(b.kernel / scale, a.kernel / scale, atol=1e-5)
        scale = np.abs(a.projection).max()
        np.testing.assert_allclose(
            b.projection / scale, a.projection / scale, atol=1e-5, err_msg=name
        )
        assert b.squared_norm == pytest.approx(a.squared_norm, rel=1e-5)


def test_the_truth_explains_all_of_linear_training_and_each_image_its_part():
    digits, x, _ = _digits(8)
    model, _ = _start()
    params_0, params_t = _victim("linearized")
    change = _tree.sub(params_t, params_0)

    def measured(images):
        duals = np.ones((1, len(images), 1))
        return explanation.measure(
            model, (params_0,), change, images, duals, bounds=digits.bounds
        )

    whole = measured(x)
    assert whole.explained == pytest.approx(1, abs=1e-4)
    assert whole.predicted == pytest.approx(1, abs=1e-3)
    assert whole.chance < 0.5
    assert whole.outside == 0
    # What an image contributes is what is lost without it, duals fitted anew.
    for i in (0, 5):
        without = measured(np.delete(np.asarray(x), i, axis=0))
        lost = whole.explained - without.explained
        assert whole.contributions[i] == pytest.approx(lost, rel=1e-2)
        assert lost > 1e-3


def test_too_many_candidates_leave_the_strongest(monkeypatch):
    digits, x, _ = _digits(8)
    model, _ = _start()
    params_0, params_t = _victim("linearized")
    monkeypatch.setattr(explanation, "MOST_ROWS", 5)
    found = explanation.measure(
        model,
        (params_0,),
        _tree.sub(params_t, params_0),
        x,
        np.arange(1.0, 9.0).reshape(1, 8, 1)
        / np.linalg.norm(np.asarray(x).reshape(8, -1), axis=1)[None, :, None],
        bounds=digits.bounds,
    )
    np.testing.assert_array_equal(found.contributions > 0, np.arange(8) >= 3)
    assert 0 < found.explained < 1


def test_no_images_explain_more_than_a_low_rank_holds():
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((9, 12))
    change = {"Dense_0": {"kernel": kernel}, "Dense_1": {"kernel": np.ones((12, 1))}}
    possible, first = explanation.possible_share(change, 3, 6)
    values = np.linalg.svd(kernel, compute_uv=False) ** 2
    assert first == pytest.approx(values[:3].sum() / values.sum(), rel=1e-9)
    assert possible == pytest.approx((values[:3].sum() + 12) / (values.sum() + 12))
    assert explanation.possible_share(change, 9, 9) == (1.0, 1.0)


@functools.cache
def _margin(name):
    """A network trained on the logistic loss from next to zero, or not quite."""
    digits = data.load("digits", num_train=4, num_test=50, key=jax.random.key(0))
    x, _ = logistic.preprocess(digits.x_train)
    model = logistic.network(40)
    scale = {"usual start": 1.0}.get(name)
    options = {} if scale is None else {"init_scale": scale}
    params = logistic.init_params(model, jax.random.key(1), SHAPE, **options)
    if name != "untrained":
        params = logistic.train(
            model,
            params,
            x,
            digits.y_train,
            learning_rate=0.1,
            max_epochs=5000,
            stop_loss=1e-2,
        ).params
    if name == "noise":
        params = jax.tree.map(
            lambda a: (
                a + jnp.std(a) * jax.random.normal(jax.random.key(3), a.shape, a.dtype)
            ),
            params,
        )
    return model, params, x


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("trained", "approximate"),
        ("untrained", "nothing found"),
        ("usual start", "nothing found"),
        ("noise", "nothing found"),
    ],
)
def test_max_margin_says_whether_its_images_are_anything(name, word):
    model, params, x = _margin(name)
    found = max_margin.reconstruct(
        model,
        params,
        key=jax.random.key(3),
        image_shape=SHAPE,
        num_images=2 * len(x),
        settings=max_margin.Settings(
            # A third as many end at 0.43 to 0.55 of the norm, as rounding has it.
            num_epochs=6000,
            init_scale=1e-3,
            image_learning_rate=0.1,
            lambda_min=0.1,
            sharpness=200.0,
        ),
    )
    assert found.verdict.word == word, found.verdict
    if not found.nonfinite:
        assert 0 <= found.verdict.explained <= 1
        total = found.contributions.sum()
        assert total == pytest.approx(found.verdict.explained, abs=0.05)


def test_a_replay_tells_right_images_from_others():
    digits, x, y = _digits(8)
    model, _ = _start()
    params = _victim("momentum")
    right = replay.replay(model, *params, x, y)
    assert right.verdict.word == "approximate"
    assert right.verdict.replay_misses == right.miss < 0.4
    mixed = jnp.asarray(explanation.random_like(np.asarray(x)), jnp.float32)
    wrong = replay.replay(model, *params, mixed, y)
    assert wrong.verdict.word == "nothing found"
    assert wrong.verdict.explained == pytest.approx(max(1 - wrong.miss**2, 0))
    del digits


def test_a_replay_that_ends_elsewhere_takes_a_search_back():
    good = Verdict("approximate", "Fine.", explained=0.95)
    assert judging.replayed(good, 0.1).word == "approximate"
    assert "10% of the way" in judging.replayed(good, 0.1).reason
    assert judging.replayed(good, 0.9).word == "nothing found"
    assert judging.replayed(good._replace(word="nothing found"), 0.1).word == (
        "nothing found"
    )


def test_bounds_are_contradicted_by_images_that_fit_and_by_no_others():
    shares = {"predicted": 0.9, "chance": 0.3, "possible": 1.0, "first_possible": 1.0}
    fit = explanation.Explained(
        explained=0.95, outside=0.2, contributions=np.ones(4), **shares
    )
    told = judging.of_search(fit)
    assert told.word == "assumptions do not hold"
    assert "20% of the images' squared norm lies outside the bounds" in told.reason
    assert judging.of_search(fit._replace(outside=0.01)).word == "approximate"
    assert judging.of_search(fit._replace(explained=0.5)).word == "nothing found"
    # Each of the shares alone withholds the word.
    for less in ({"explained": 0.89}, {"predicted": 0.79}, {"chance": 0.9}):
        weak = fit._replace(outside=0.0, **less)
        assert judging.of_search(weak).word == "nothing found", less
    for less in ({"possible": 0.5}, {"first_possible": 0.9}):
        weak = fit._replace(outside=0.0, explained=0.4, **less)
        assert judging.of_search(weak).word == "assumptions do not hold", less
    assert judging.of_search(None).word == "nothing found"


def test_shares_are_told_without_flattery():
    told = [judging.percent(share) for share in (1.0, 0.9999, 0.9996, 0.914, -3.0)]
    assert told == ["100%", "99.99%", "99.96%", "91%", "0%"]
    assert judging.percent(0.99996) == "100%"
    assert judging.percent(0.9999499) == "99.99%"


def _refused(attack, message):
    with pytest.raises(ValueError, match=message) as caught:
        attack()
    assert "\n" not in str(caught.value)


def test_parameters_that_are_not_the_networks_are_refused_by_every_attack():
    digits, x, y = _digits(8)
    model, params = _start()
    moved = jax.tree.map(lambda a: a + 0.01, params)
    wider = MLP((WIDTH, WIDTH + 1)).init_params(jax.random.key(0), SHAPE)
    no_bias = {name: {"kernel": layer["kernel"]} for name, layer in params.items()}
    torch = {
        name: {"weight": layer["kernel"].T, "bias": layer["bias"]}
        for name, layer in params.items()
    }
    whole = jax.tree.map(lambda a: jnp.asarray(a, jnp.int32), params)
    given = {"key": jax.random.key(0), "image_shape": SHAPE, "num_images": 2}
    search = dataclasses.replace(kkt.FAST, num_steps=1)

    def attacks(bad):
        yield lambda: kkt.reconstruct(
            model, params, bad, bounds=digits.bounds, settings=search, **given
        )
        yield lambda: replay.replay(model, params, bad, x, y)
        yield lambda: stationarity.normal_equations(model, (bad,), params, x)
        yield lambda: stationarity.kernel_form(
            model, (bad,), params, x, jnp.ones((1, 8, 1)), squared_norm=jnp.ones(())
        )

    for bad, message in (
        (wider, r"\['Dense_1'\]\['kernel'\] has shape \(128, 129\), the network"),
        (no_bias, r"holds \['kernel'\], the network has \['bias', 'kernel'\]"),
        (torch, r"holds \['bias', 'weight'\], the network"),
        ({"params": params}, r"holds \['params'\], but an MLP .* its entry 'params'"),
        ({"out": params["Dense_0"]}, r"holds \['out'\], but an MLP of 2 hidden"),
        (whole, "has dtype int32: convert"),
    ):
        for attack in attacks(bad):
            _refused(attack, message)
    _refused(
        lambda: stationarity.normal_equations(model, (params,), wider, x),
        r"change\['Dense_1'\]\['kernel'\] has shape \(128, 129\)",
    )
    _refused(
        lambda: replay.replay(model, params, moved, x, jnp.ones((8, 3))),
        "labels have 3 columns, the network has 1 outputs",
    )
    paper = dataclasses.replace(kkt.PAPER, num_steps=1)
    for apply_fn, outputs, message in (
        (model.apply_fn, 2, r"outputs of shape \(3, 1\), not \(3, 2\)"),
        (lambda p, x: p["other"] @ x, 1, "fails on them .KeyError"),
        (lambda p, x: model.apply_fn(p, x)[0], 1, r"outputs of shape \(1,\)"),
        (lambda p, x: model.apply_fn(p, x) > 0, 1, "dtype bool: attacks need real"),
    ):
        _refused(
            lambda f=apply_fn, c=outputs: kkt.reconstruct(
                f,
                params,
                moved,
                bounds=digits.bounds,
                settings=paper,
                num_outputs=c,
                **given,
            ),
            message,
        )


def test_weights_as_people_have_them_are_taken():
    digits, x, _ = _digits(8)
    model, _ = _start()
    params = _victim("linearized")
    search = dataclasses.replace(kkt.FAST, num_steps=2)
    found = []
    for form in (
        lambda p: p,
        flax.core.freeze,
        lambda p: jax.tree.map(np.asarray, p),
    ):
        one = kkt.reconstruct(
            model,
            *map(form, params),
            key=jax.random.key(0),
            image_shape=SHAPE,
            num_images=4,
            bounds=digits.bounds,
            settings=search,
        )
        found.append(np.asarray(one.images))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    half = [jax.tree.map(lambda a: a.astype(jnp.bfloat16), p) for p in params]
    read = fitting.mlp_params(model, half[0])
    assert read["Dense_0"]["kernel"].dtype == jnp.float32
    del x
