"""The schedule of APGD, and its trajectory against a slow twin of one image a time."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import ThreatModel, apgd, losses, pool, task, threat_model

STEPS = 30
EPS = {"linf": 0.05, "l2": 0.4}


def test_windows_of_a_hundred_steps_and_of_ten():
    closes = apgd.windows(100)
    assert list(np.flatnonzero(closes)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(closes[closes > 0]) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert len(closes) == 101
    # 2, then 1 each: no window is empty, however few the steps.
    assert list(np.flatnonzero(apgd.windows(10))) == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert list(apgd.windows(1)) == [0, 1]


@pytest.fixture(scope="module")
def double(toy):
    """The toy in float64."""
    params = jax.tree.map(lambda p: p.astype(jnp.float64), toy.params)
    return jax.tree_util.Partial(toy.logits_fn.func, params), toy.x.astype(jnp.float64)


@pytest.fixture(scope="module", params=["linf", "l2"])
def trajectory(request, toy, double):
    """Points, losses and steps of every evaluation."""
    norm = request.param
    # Starts from which no decision hangs on rounding.
    key = jax.random.key({"linf": 4, "l2": 3}[norm])
    logits_fn, x = double
    model = ThreatModel(norm, EPS[norm])
    work = task.prepare(logits_fn, x, toy.y, key=key, threat_model=model)
    closes = jnp.asarray(apgd.windows(STEPS))

    @jax.jit
    def whole(work):
        climb = apgd.walk(
            closes,
            jnp.asarray(0.75),
            key,
            norm=norm,
            loss="ce",
            eot=1,
            stop_early=False,
        )
        spot = pool.whole(work, work.y)
        first = climb.begin(spot, jnp.full(len(x), jnp.inf))

        def body(state, _):
            new = climb.advance(spot, state, key)
            return new, (state.point, new.best_loss, new.step)

        return jax.lax.scan(body, first, None, length=STEPS + 1)

    _, rows = whole(work)
    return norm, [np.asarray(row) for row in rows]


def _near(x, u, eps, norm):
    if norm == "linf":
        return np.clip(np.clip(u, x - eps, x + eps), 0, 1)
    low, high = 0.0, 1.0
    for _ in range(80):
        t = (low + high) / 2
        inside = np.linalg.norm(np.clip(x + t * (u - x), 0, 1) - x) <= eps
        low, high = (t, high) if inside else (low, t)
    return np.clip(x + low * (u - x), 0, 1)


def _twin(read, x, start, norm, eps):
    """One image, in the order of the definition; lists instead of masks."""
    step, reduced = 2 * eps, True
    point = start
    loss, gradient = read(point)
    best = (loss, point, gradient)
    seen, history, points, steps = best[0], [0.0], [point], []
    k, since = 6, 0  # int(0.22 * 30)
    old = point
    for i in range(STEPS):
        inertia = point - old
        a = 0.75 if i else 1.0
        old = point
        way = (
            np.sign(gradient) if norm == "linf" else gradient / np.linalg.norm(gradient)
        )
        ahead = _near(x, point + step * way, eps, norm)
        point = _near(x, point + a * (ahead - point) + (1 - a) * inertia, eps, norm)
        points.append(point)
        loss, gradient = read(point)
        history.append(loss)
        if loss > best[0]:
            best = (loss, point, gradient)
        since += 1
        if since == k:
            last = history[-k - 1 :]
            rises = sum(b > a for a, b in itertools.pairwise(last))
            fires = rises <= 0.75 * k or (not reduced and seen >= best[0])
            reduced, seen = fires, best[0]
            if fires:
                step, (_, point, gradient) = step / 2, best
            k, since = max(k - 1, 1), 0
        steps.append(step)
    return points, steps, best[0]


def test_every_point_and_step_is_that_of_the_twin(trajectory, toy, double):
    norm, (points, best, steps) = trajectory
    logits_fn, x = double

    @jax.jit
    def both(u, y):
        def one(v):
            z = logits_fn(v[None])
            return losses.cross_entropy(z, y[None], y[None])[0]

        return jax.value_and_grad(one)(u)

    for i in range(1, 6):

        def read(u, i=i):
            value, gradient = both(jnp.asarray(u), toy.y[i])
            return float(value), np.asarray(gradient)

        found, lengths, top = _twin(
            read, np.asarray(x[i]), points[0, i], norm, EPS[norm]
        )
        np.testing.assert_allclose(points[:, i], np.stack(found), atol=1e-7)
        np.testing.assert_allclose(steps[1:, i], lengths, rtol=1e-12)
        np.testing.assert_allclose(best[-1, i], top, rtol=1e-7)
    assert len(np.unique(steps[-1])) > 1, "no step was halved differently: no test"


def test_the_best_loss_never_falls_and_points_are_allowed(trajectory, double):
    norm, (points, best, steps) = trajectory
    assert np.all(np.diff(best, axis=0) >= 0)
    assert np.all(best[-1] > best[0])
    assert np.all(np.diff(steps, axis=0) <= 0)
    for point in points:
        far = threat_model.distance(jnp.asarray(point) - double[1], norm=norm)
        assert float(jnp.max(far)) <= EPS[norm] + 1e-12
    # The box cuts some starts short, not all.
    far = threat_model.distance(jnp.asarray(points[0]) - double[1], norm=norm)
    np.testing.assert_allclose(jnp.max(far), EPS[norm], rtol=1e-6)


def test_stopping_early_breaks_the_same_images(toy, model):
    def attack(**options):
        return apgd.attack(
            toy.logits_fn,
            toy.x,
            toy.y,
            key=jax.random.key(0),
            threat_model=model["linf"],
            num_steps=10,
            **options,
        )

    one, two = attack(), attack(stop_early=False)
    np.testing.assert_array_equal(one.success, two.success)
    assert np.all(np.asarray(one.queries) <= np.asarray(two.queries))
    assert int(two.queries[1]) == 11


def test_more_targets_than_classes_are_fewer_and_said(toy, model):
    with pytest.warns(UserWarning, match="num_targets=9 but the model has 4 wrong"):
        apgd.attack(
            toy.logits_fn,
            toy.x,
            toy.y,
            key=jax.random.key(0),
            threat_model=model["linf"],
            num_steps=10,
            loss="targeted-dlr",
        )


@pytest.mark.parametrize(("loss", "classes"), [("dlr", 2), ("targeted-dlr", 3)])
def test_too_few_classes_for_a_ratio(toy, model, loss, classes):
    with pytest.raises(ValueError, match=f"needs {classes + 1} classes but"):
        apgd.attack(
            lambda x: toy.logits_fn(x)[:, :classes],
            toy.x,
            toy.y % classes,
            key=jax.random.key(0),
            threat_model=model["linf"],
            loss=loss,
        )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"loss": "hinge"},
            "loss='hinge' is unknown: use one of ce, dlr, targeted-dlr",
        ),
        ({"num_steps": 0}, "num_steps=0 must be at least 1"),
        ({"rho": 1.5}, r"rho=1.5 must lie in \[0, 1\]"),
    ],
)
def test_bad_settings_are_refused(toy, options, text):
    with pytest.raises(ValueError, match=text):
        apgd.attack(
            toy.logits_fn,
            toy.x,
            toy.y,
            key=jax.random.key(0),
            threat_model=ThreatModel(),
            **options,
        )
