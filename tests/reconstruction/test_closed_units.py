"""Exact images from the first layer of networks trained in ordinary ways."""

import collections
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ntk_privacy.reconstruction import (
    change_factors,
    closed_rows,
    closed_units,
    first_layer,
    shown_change,
    unit_rows,
    unit_search,
    unit_set,
    unit_space,
)

SHAPE = (6, 6, 1)
F32 = jnp.float32
N, WIDTH = 8, 192


def _images(n=N, seed=0):
    """Smooth random images around zero, which have a common part as pictures have."""
    noise = np.random.default_rng(seed).standard_normal((n + 1, *SHAPE))
    for axis in (1, 2):
        noise = noise + np.roll(noise, 1, axis)
    return jnp.asarray(noise[1:] + 0.5 * noise[:1], jnp.float32)


def _params(seed=1, width=WIDTH, depth=2):
    sizes = [int(np.prod(SHAPE)), width, *(64,) * (depth - 1), 3]
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    return {
        f"layer{i}": {
            "kernel": jax.random.normal(keys[i], (a, b), F32) * float(a**-0.5),
            "bias": jnp.zeros(b, F32),
        }
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }


def _outputs(params, x, act=jax.nn.relu):
    h = x.reshape(len(x), -1)
    for i in range(len(params)):
        layer = params[f"layer{i}"]
        h = h @ layer["kernel"]
        h = h + layer["bias"][None] if "bias" in layer else h
        h = h if i == len(params) - 1 else act(h) if i == 0 else jax.nn.relu(h)
    return h


def _normalised(z):
    z = z - jnp.mean(z, axis=1, keepdims=True)
    return jax.nn.relu(z / jnp.std(z, axis=1, keepdims=True))


def _loss(params, x, y, act=jax.nn.relu):
    losses = optax.softmax_cross_entropy_with_integer_labels(
        _outputs(params, x, act), y
    )
    return jnp.mean(losses)


@functools.partial(jax.jit, static_argnames=("act", "adam", "batch"))
def _train(params, x, y, decay=0.0, act=jax.nn.relu, adam=False, batch=3):
    sgd = optax.sgd(0.03, momentum=0.9)
    optimizer = optax.chain(optax.scale_by_rms(), optax.scale(-1e-3)) if adam else sgd

    def step(carry, key):
        params, state = carry
        chosen = jax.random.permutation(key, len(x))[:batch]
        grads = jax.grad(_loss)(params, x[chosen], y[chosen], act)
        grads = jax.tree.map(lambda g, p: g + decay * p, grads, params)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(5), 200)
    return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]


def _labels(n=N):
    return jnp.arange(n) % 3


def _read(before, after, **given):
    return closed_units.reconstruct(
        before, after, key=jax.random.key(2), image_shape=SHAPE, **given
    )


def _relative_errors(found, x):
    truth = np.asarray(x, np.float64).reshape(len(x), -1)
    images = np.asarray(found.images, np.float64).reshape(len(found.images), -1)
    distances = np.linalg.norm(truth[:, None] - images[None], axis=-1)
    nearest = distances.argmin(0)
    return distances.min(0) / np.linalg.norm(truth, axis=1)[nearest], nearest


def _assert_exact(found, x, largest=1e-3):
    assert found.verdict.word == "exact", found.verdict
    assert found.certified.all()
    assert found.estimated_num_images == len(x)
    errors, nearest = _relative_errors(found, x)
    assert sorted(nearest) == list(range(len(x)))
    assert errors.max() < largest
    assert np.all(errors <= found.errors)


@pytest.fixture(scope="module")
def trained():
    x, before = _images(), _params()
    return x, before, _train(before, x, _labels())


@pytest.fixture(scope="module")
def space(trained):
    """The coordinates, with the true rows and images in them."""
    x, before, after = trained
    kernels = [np.asarray(p["layer0"]["kernel"], np.float64) for p in trained[1:]]
    biases = [np.asarray(p["layer0"]["bias"], np.float64) for p in (before, after)]
    factors = change_factors.factorize(kernels[1] - kernels[0])
    made = unit_space.make(
        factors, (kernels[0], kernels[1]), (biases[0], biases[1]), biases[1] - biases[0]
    )
    flat = np.asarray(x, np.float64).reshape(N, -1)
    u = np.linalg.lstsq(made.left, flat.T, rcond=None)[0].T
    c = np.linalg.inv(u.T)
    return made, c / np.linalg.norm(c, axis=1, keepdims=True), u


def test_minibatches_momentum_and_cross_entropy_are_read_exactly(trained):
    x, before, after = trained
    _assert_exact(_read(before, after), x)


def test_one_gradient_through_many_layers_is_read_exactly():
    x, params = _images(), _params(depth=4)
    gradient = jax.jit(jax.grad(_loss))(params, x, _labels())
    found = closed_units.reconstruct_gradient(
        params, gradient, key=jax.random.key(2), image_shape=SHAPE
    )
    _assert_exact(found, x, largest=1e-4)


@pytest.mark.parametrize("decay", [3e-3, 1e-4])
def test_weight_decay_is_one_scalar_that_the_spectrum_tells(trained, decay):
    # The smaller one leaves a gap without being taken out.
    x, before, _ = trained
    found = _read(before, _train(before, x, _labels(), decay))
    _assert_exact(found, x)
    assert "weight decay left" in found.verdict.reason


@pytest.mark.parametrize("share", [1.0, 0.9999])
def test_decay_is_searched_for_where_noise_holds_some_of_the_old_weights(
    share, monkeypatch
):
    rng = np.random.default_rng(0)
    before, noise = rng.standard_normal((2, 40, 90))
    change = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 90)) + 1e-3 * noise
    read = first_layer.FirstLayer(
        "Dense_0", before, share * before + change, None, None, 1e-7
    )
    searched = []
    monkeypatch.setattr(
        change_factors, "decay", lambda *_, **__: searched.append(1) or share
    )
    plain = change_factors.factorize(read.kernel_t - before)
    assert plain.shown
    assert plain.gap < shown_change._CLEAN
    shown_change.factorized(read, plain, None)
    assert bool(searched) == (share < 1)


def test_the_scalar_is_found_to_many_digits():
    rng = np.random.default_rng(0)
    before = rng.standard_normal((40, 90))
    change = rng.standard_normal((40, 5)) @ rng.standard_normal((5, 90))
    assert change_factors.decay(before, 0.83 * before + change) == pytest.approx(
        0.83, abs=1e-10
    )


@pytest.mark.parametrize("rank", [1, 2, 7])
def test_the_spectrum_tells_rank_and_noise(rank):
    rng = np.random.default_rng(rank)
    change = rng.standard_normal((40, rank)) @ rng.standard_normal((rank, 90))
    factors = change_factors.factorize(change + 1e-4 * rng.standard_normal((40, 90)))
    assert factors.shown
    assert len(factors.values) == rank
    assert factors.noise == pytest.approx(1e-4, rel=0.3)
    assert not change_factors.factorize(rng.standard_normal((40, 90))).shown


def test_a_sketch_agrees_with_the_whole_spectrum(monkeypatch):
    rng = np.random.default_rng(0)
    change = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 250))
    change += 1e-5 * rng.standard_normal((300, 250))
    whole = change_factors.factorize(change)
    monkeypatch.setattr(change_factors, "_WHOLE", 0)
    part = change_factors.factorize(change)
    np.testing.assert_allclose(part.values, whole.values, rtol=1e-10)
    assert part.gap == pytest.approx(whole.gap, rel=0.1)


def test_pairs_of_image_and_row_obey_the_algebra(trained, space):
    x, before, _ = trained
    made, c, u = space
    cross = c @ u.T
    np.testing.assert_allclose(cross, np.diag(np.diag(cross)), atol=1e-8)
    np.testing.assert_allclose(u @ made.scale, 1.0, rtol=1e-3)
    layer = before["layer0"]
    z = np.asarray(x.reshape(N, -1) @ layer["kernel"] + layer["bias"][None])
    np.testing.assert_allclose(u @ made.gates_0, z[:, made.alive], atol=2e-3)
    vanish = unit_rows.vanishing(made, c)
    closed = unit_rows.preactivations(made, u) < 0
    assert np.mean(vanish == closed, axis=1).min() > 0.85


def test_rough_images_end_at_true_rows(space):
    made, c, u = space
    inverse = unit_space.inverse_gates(made, np.zeros((0, N)))
    rng = np.random.default_rng(0)
    for i in range(N):
        noise = rng.standard_normal(N) * np.linalg.norm(u[i]) / np.sqrt(N)
        row = unit_rows.exact(made, u[i] + 0.2 * noise, inverse)
        assert row is not None
        unit = row.c / np.linalg.norm(row.c)
        assert np.abs(c @ unit).argmax() == i
        assert abs(c[i] @ unit) > 1 - 1e-6


def test_regression_keeps_off_what_was_found(space):
    made, c, _ = space
    inverse = unit_space.inverse_gates(made, c[:3])
    np.testing.assert_allclose(c[:3] @ inverse, 0, atol=1e-9 * np.abs(inverse).max())


def test_one_false_row_is_repaired(space):
    made, c, _ = space
    false = c.copy()
    false[2] = 0.6 * c[2] + 0.8 * c[5]
    whole = unit_set.complete(made, false)
    assert whole is not None
    assert closed_rows.passes(whole).all()
    assert np.abs(np.sum(whole.c * c, axis=1)).min() > 1 - 1e-6


def test_false_rows_do_not_bar_the_way_to_the_others_for_good(space, monkeypatch):
    made, c, _ = space
    accepted, rounds = closed_rows._accepted, []

    def first_false(space, rough, rows, inverse, limit):
        rounds.append(limit)
        if len(rounds) > 1:
            return accepted(space, rough, rows, inverse, limit)
        return [
            row._replace(c=c[i] + c[i + 1], ratio=0.02, noises=1e5) if i < 3 else row
            for i, row in enumerate(accepted(space, rough, rows, inverse, limit)[:6])
        ]

    monkeypatch.setattr(closed_rows, "_accepted", first_false)
    found = closed_rows.find(
        made, key=jax.random.key(0), starts=None, num_starts=64, max_rounds=20,
        dtype=jnp.float32,
    )  # fmt: skip
    assert found.good.all()
    assert found.whole is not None
    assert min(rounds) < 0.02


@pytest.mark.parametrize("least", [0.0, 1e-9])
def test_a_weak_row_is_in_no_doubt_beside_strong_ones(least):
    """A loss of 1e-4 of the others' leaves a ratio of 1e-4 that is noise alone."""
    row = functools.partial(unit_rows.Row, np.ones(3), np.ones(3), agreement=0.95)
    strong, weak = row(ratio=least, noises=0.1), row(ratio=1e-4, noises=0.4)
    false = row(ratio=0.01, noises=1e5)
    rows, limit = closed_rows._sure([weak, false, strong], 0.03)
    assert [row.ratio for row in rows] == [1e-4, least]
    assert limit == pytest.approx(1000 * least)


def test_steps_that_are_alike_to_the_last_bit_lead_to_finite_places():
    """Of 3,000 exact sets of two images three ended in an error of LAPACK."""
    x = np.eye(2)
    for size in (0.0, 2.0**-52):
        step = np.full((2, 2), size)
        assert np.isfinite(unit_set._leapt(x, x + step, x + 2 * step)).all()


def test_many_images_for_the_units_are_read():
    """The search ended with a part of them, for want of patience."""
    x = _images(24, seed=1)
    params = _params(seed=2, width=128)
    gradient = jax.grad(_loss)(params, x, jnp.arange(24) % 3)
    found = closed_units.reconstruct_gradient(
        params, gradient, key=jax.random.key(2), image_shape=SHAPE
    )
    _assert_exact(found, x, largest=1e-4)


def test_nearly_equal_images_are_read_as_their_mean_and_the_verdict_says_so():
    x, params = _images(seed=3), _params(seed=3)
    x = x.at[3].set(x[0] + 1e-3 * x[5])  # of one label, and of the same gates
    gradient = jax.grad(_loss)(params, x, _labels())
    found = closed_units.reconstruct_gradient(
        params, gradient, key=jax.random.key(2), image_shape=SHAPE
    )
    assert len(found.images) == N - 1
    assert "a mean of nearly equal ones" in found.verdict.reason
    mean = np.asarray(x[0] + x[3]) / 2
    far = np.linalg.norm(np.asarray(found.images) - mean, axis=(1, 2))[:, 0].min()
    assert far < 0.1 * 1e-3 * float(jnp.linalg.norm(x[5]))


def test_a_polish_moves_images_and_is_no_evidence_for_them(trained, monkeypatch):
    """It fits what is no sum of images too."""
    _, before, after = trained
    polished = _read(before, after)

    def still(space, whole):
        return whole._replace(moved=np.full(len(whole.c), 0.02))

    monkeypatch.setattr(unit_set, "polish", still)
    rough = _read(before, after)
    assert rough.verdict.explained == polished.verdict.explained
    assert rough.errors.min() >= 0.02
    assert polished.errors.max() < 0.02


def test_joint_refinement_ends_at_the_least_squares(monkeypatch):
    """Alternations alone, as many as eight, end 5% above it."""
    x, params = _images(16, seed=1), _params(seed=2, width=144)
    gradient = jax.grad(_loss)(params, x, jnp.arange(16) % 3)
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(
        lambda leaf: leaf + 2e-6 * leaf.std() * rng.standard_normal(leaf.shape),
        jax.tree.map(np.asarray, gradient),
    )
    gradient = jax.tree.map(lambda leaf: jnp.asarray(leaf, F32), noisy)
    converged, ends = unit_set._converged, []

    def seen(x, y, is_open):
        ends.append((converged(x, y, is_open), y, is_open))
        return ends[-1][0]

    monkeypatch.setattr(unit_set, "_converged", seen)
    found = closed_units.reconstruct_gradient(
        params, gradient, key=jax.random.key(2), image_shape=SHAPE
    )
    _assert_exact(found, x, largest=1e-3)
    images, y, is_open = ends[-1]
    rests = []
    for _ in range(60):
        signals = unit_set._masked_signals(images, y, is_open)
        rests.append(np.sum((y - images @ signals) ** 2))
        images = np.linalg.lstsq(signals.T, y.T, rcond=None)[0].T
    assert rests[-1] > 0.98 * rests[0]


def test_masked_least_squares_are_those_of_each_unit_alone():
    rng = np.random.default_rng(0)
    images, y = rng.standard_normal((9, 6)), rng.standard_normal((9, 40))
    is_open = rng.random((6, 40)) < 0.5
    is_open[:, 3], is_open[:, 7] = False, True
    slow = np.zeros((6, 40))
    for unit in range(40):
        used = np.flatnonzero(is_open[:, unit])
        slow[used, unit] = np.linalg.lstsq(images[:, used], y[:, unit], rcond=None)[0]
    signals = unit_set._masked_signals(images, y, is_open)
    np.testing.assert_allclose(signals, slow, atol=1e-12)


def test_robust_rows_are_those_of_dense_systems(space):
    """The same weights and the same noise, a system an image."""
    made, c, _ = space
    rng = np.random.default_rng(0)
    noisy = made._replace(
        signals=made.signals + 1e-4 * rng.standard_normal(made.signals.shape)
    )
    u = np.linalg.inv(c).T
    closed = unit_rows.preactivations(noisy, u) < 0
    rows = unit_rows.robust_rows(noisy, closed, c, u)
    white = noisy.values[:, None] * noisy.signals
    for row, shut, start, image in zip(rows, closed, c, u, strict=True):
        inner, slow = white[:, shut], start / noisy.values
        for _ in range(30):
            slow = slow / np.linalg.norm(slow)
            size = np.abs(slow @ inner)
            scale = 1.5 * np.median(size)
            weight = 1 / (1 + (size / (2 * scale)) ** 2)
            gram = (inner * weight) @ inner.T
            noise = min(weight.sum() * scale**2, slow @ gram @ slow)
            system = gram - 0.9 * noise * np.eye(len(gram))
            slow = np.linalg.solve(system, noisy.values * image)
        slow = slow * noisy.values
        slow /= np.linalg.norm(slow)
        away = (row - slow * np.sign(slow @ row)) @ noisy.signals
        typical = np.sqrt(np.mean((row @ noisy.signals)[shut] ** 2))
        assert np.sqrt(np.mean(away**2)) < 0.05 * typical


@pytest.mark.parametrize("powers", [1, 4])
def test_a_whole_krylov_space_inverts_the_energies(monkeypatch, powers):
    monkeypatch.setattr(unit_search, "_KRYLOV", 6)
    key_rows, key_closed, key_u = jax.random.split(jax.random.key(0), 3)
    rows = jax.random.normal(key_rows, (6, 50))
    closed = jax.random.uniform(key_closed, (50,))
    u = jax.random.normal(key_u, (6,))
    c = unit_search._least(rows, closed, u, jnp.asarray(powers))
    gram = np.asarray((rows * closed[None]) @ rows.T, np.float64)
    slow = np.asarray(u, np.float64)
    for _ in range(powers):
        slow = np.linalg.solve(gram, slow)
    cosine = slow @ np.asarray(c) / np.linalg.norm(slow) / np.linalg.norm(c)
    assert cosine > 1 - 1e-4


def test_a_false_row_that_is_not_repaired_is_refused(space, monkeypatch):
    made, c, _ = space
    monkeypatch.setattr(unit_set, "_sharpened", lambda space, c, last, weighted: c)
    true = unit_set.complete(made, c)
    assert true is not None
    assert closed_rows.passes(true).all()
    for i, j in ((2, 5), (0, 1), (6, 3)):
        false = c.copy()
        false[i] = 0.6 * c[i] + 0.8 * c[j]
        whole = unit_set.complete(made, false)
        assert whole is not None
        assert not closed_rows.passes(whole).all()


def test_images_that_depend_are_no_error():
    rest = np.random.default_rng(0).standard_normal((4, 3))
    signals = unit_set._masked_signals(
        np.full((4, 2), 2.0), rest, np.ones((2, 3), bool)
    )
    assert np.isfinite(signals).all()


def test_the_fullest_rows_outlast_combinations_of_them(space):
    made, c, images = space
    true = [
        unit_rows.Row(row, u, 0.0, 0.0, 1.0) for row, u in zip(c, images, strict=True)
    ]
    false = true[2]._replace(c=0.6 * c[2] + 0.8 * c[5])
    kept = closed_rows._fullest(made, [false, *true])
    assert len(kept) == N
    assert not any(row.c is false.c for row in kept)
    # What it is made of is not known: it stays for the time being.
    rest = [row for k, row in enumerate(true) if k != 5]
    assert any(row.c is false.c for row in closed_rows._fullest(made, [false, *rest]))


def test_a_combination_that_bars_the_way_is_left_out(space, monkeypatch):
    """It is among the rows from the start, and nothing else of its images is."""
    made, c, _ = space
    false = 0.6 * c[2] + 0.8 * c[5]
    false /= np.linalg.norm(false)
    true = [unit_rows.Row(row, row, 0.0, 0.0, 1.0) for row in c]
    barred = [true[k] for k in range(N) if k not in (2, 5)]
    barred.append(unit_rows.Row(false, false, 0.0, 0.0, 1.0))
    rounds = iter([barred])
    accepted = closed_rows._accepted

    def first(*args, **options):
        given = next(rounds, None)
        return accepted(*args, **options) if given is None else given

    monkeypatch.setattr(closed_rows, "_accepted", first)
    found = closed_rows.find(
        made,
        key=jax.random.key(0),
        starts=None,
        num_starts=64,
        max_rounds=20,
        dtype=F32,
    )
    assert found.whole is not None
    assert found.good.all()
    cosines = np.abs(found.whole.c @ c.T)
    np.testing.assert_allclose(np.sort(cosines.max(1)), 1.0, atol=1e-6)


def test_error_bars_grow_with_noise_and_hold(trained):
    x, before, after = trained
    bounds = []
    for size in (0.0, 1e-5, 1e-4):
        keys = jax.random.split(jax.random.key(3), 2)
        noisy = {**after, "layer0": dict(after["layer0"])}
        for key, name in zip(keys, ("kernel", "bias"), strict=True):
            leaf = after["layer0"][name]
            noisy["layer0"][name] = leaf + size * jax.random.normal(
                key, leaf.shape, F32
            )
        found = _read(before, noisy)
        errors, _ = _relative_errors(found, x)
        assert np.all(errors <= found.errors)
        bounds.append(np.median(found.errors))
    assert bounds[0] < bounds[1] < bounds[2]


def test_given_images_are_starts(trained):
    x, before, after = trained
    found = _read(before, after, starts=x + 0.1, num_starts=1, max_rounds=1)
    assert len(found.images) >= N // 2
    with pytest.raises(ValueError, match=r"starts have shape \(4, 9, 1\) but image_sh"):
        _read(before, after, starts=x.reshape(N, 4, 9, 1))


def test_without_a_bias_images_are_known_up_to_their_size(trained):
    x, before, _ = trained
    before = {**before, "layer0": {"kernel": before["layer0"]["kernel"]}}
    found = _read(before, _train(before, x, _labels()))
    assert not found.certified.any()
    assert found.verdict.word == "approximate"
    assert "up to their size" in found.verdict.reason
    flat = np.asarray(found.images).reshape(N, -1)
    truth = np.asarray(x).reshape(N, -1)
    truth = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    np.testing.assert_allclose((flat @ truth.T).max(1), 1.0, atol=1e-5)


def test_a_positive_multiple_of_another_image_is_no_certificate(trained):
    x, before, _ = trained
    both = jnp.concatenate([x, 1.2 * x[:1]])
    labels = jnp.append(_labels(), 0)
    found = _read(before, _train(before, both, labels))
    errors, _ = _relative_errors(found, both)
    assert np.all(errors[found.certified] <= found.errors[found.certified])
    assert found.certified.sum() < len(both)


@pytest.mark.parametrize(
    ("kind", "word", "told"),
    [
        ("adam", "assumptions do not hold", "shows no rank .* as after Adam"),
        ("tanh", "nothing found", "no ReLU follows the layer"),
        ("normalised", "nothing found", "of 8 rows .* normalisation stands between"),
        ("narrow", "nothing found", "only .* units move: about half of them"),
        ("crowded", "assumptions do not hold", "more images than the layer has inputs"),
        ("other", "assumptions do not hold", "shows no rank"),
    ],
)
def test_what_breaks_an_assumption_is_told(trained, kind, word, told):
    x, before, after = trained
    if kind == "adam":
        after = _train(before, x, _labels(), adam=True)
    elif kind == "tanh":
        after = _train(before, x, _labels(), act=jnp.tanh)
    elif kind == "normalised":
        after = _train(before, x, _labels(), act=_normalised)
    elif kind == "narrow":
        before = _params(width=14)
        after = _train(before, x, _labels())
    elif kind == "crowded":
        after = _train(before, _images(60), _labels(60))
    else:
        before = _params(seed=9)
    found = _read(before, after, max_rounds=8)
    assert found.verdict.word == word, found.verdict
    np.testing.assert_array_equal(found.certified, False)
    assert jax.numpy.isfinite(np.asarray(found.images)).all()
    assert re.search(told, found.verdict.reason), found.verdict.reason


def _with(params, **leaves):
    return {**params, "layer0": {**params["layer0"], **leaves}}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda a, b: (a, a), "The layer layer0 did not move: it holds nothing"),
        (lambda a, b: (a, {"layer0": b["layer0"]}), "differ in structure: give the"),
        (
            lambda a, b: (a, _with(b, bias=b["layer0"]["bias"] * jnp.nan)),
            "params_t.* NaN or infinite",
        ),
        (
            lambda a, b: tuple({"layer1": p["layer1"]} for p in (a, b)),
            r"No dense layer takes images of 36 values \(found: layer1 \(192, 64\)\)",
        ),
    ],
)
def test_bad_parameters_are_one_sentence(trained, make, told):
    _, before, after = trained
    with pytest.raises(ValueError, match=told):
        _read(*make(before, after))


def test_numbers_and_names_are_checked(trained):
    _, before, after = trained
    with pytest.raises(ValueError, match="num_starts=0 must be at least 1"):
        _read(before, after, num_starts=0)
    with pytest.raises(ValueError, match="max_rounds=0 must be at least 1"):
        _read(before, after, max_rounds=0)
    with pytest.raises(ValueError, match="layer='layer1' is no dense layer that takes"):
        _read(before, after, layer="layer1")
    zero = jax.tree.map(jnp.zeros_like, after)
    with pytest.raises(ValueError, match="The gradient of the layer layer0 is zero"):
        closed_units.reconstruct_gradient(
            before, zero, key=jax.random.key(0), image_shape=SHAPE
        )


class _Tensor:
    """What of a PyTorch tensor differs from an array."""

    def __init__(self, values, dtype="torch.float32", requires_grad=True):
        self.values = np.asarray(values)
        self.dtype, self.requires_grad = dtype, requires_grad
        self.shape, self.ndim = self.values.shape, self.values.ndim

    def __array__(self, dtype=None, copy=None):
        if self.requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values

    def detach(self):
        return _Tensor(self.values, self.dtype, requires_grad=False)

    def cpu(self):
        return self

    def float(self):
        values = self.values.astype(np.float32)
        return _Tensor(values, requires_grad=self.requires_grad)


def _stand_in(values):
    return _Tensor(values, f"torch.{values.dtype}")


def _of_torch(values):
    torch = pytest.importorskip("torch")
    wide = torch.tensor(np.asarray(values, np.float32))
    return torch.nn.Parameter(wide.to(getattr(torch, str(values.dtype))))


def _state_dict(params, tensor):
    """Keys and order of axes of `torch.nn.Sequential` with ReLU in between."""
    return collections.OrderedDict(
        (f"{2 * i}.{name}", tensor(leaf))
        for i, layer in enumerate(params.values())
        for name, leaf in (("weight", layer["kernel"].T), ("bias", layer["bias"]))
    )


@pytest.mark.parametrize("tensor", [_stand_in, _of_torch])
def test_state_dicts_of_pytorch_are_read_alike(trained, tensor):
    x, *both = trained
    _assert_exact(_read(*(_state_dict(p, tensor) for p in both)), x)
    halves = [jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), p) for p in both]
    plain = first_layer.read(*halves, pixels=36, name="layer0")
    dicts = [_state_dict(p, tensor) for p in halves]
    for a, b in zip(
        plain[1:], first_layer.read(*dicts, pixels=36, name="0")[1:], strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert plain.roundoff == 2.0**-8


@pytest.mark.parametrize(("count", "shift"), [(2, 0.0), (N, 3.0)])
def test_few_images_and_units_that_are_mostly_dead_are_read(count, shift):
    x, params = _images()[:count], _params(width=512)
    bias = params["layer0"]["bias"] - shift
    params = {**params, "layer0": {**params["layer0"], "bias": bias}}
    gradient = jax.jit(jax.grad(_loss))(params, x, _labels(count))
    moved = np.any(np.asarray(gradient["layer0"]["kernel"]) != 0, axis=0)
    assert not shift or moved.mean() < 0.5
    found = closed_units.reconstruct_gradient(
        params, gradient, key=jax.random.key(2), image_shape=SHAPE
    )
    _assert_exact(found, x)


def test_one_image_is_read_and_not_certified():
    x, params = _images()[:1], _params()
    gradient = jax.jit(jax.grad(_loss))(params, x, _labels(1))
    found = closed_units.reconstruct_gradient(
        params, gradient, key=jax.random.key(2), image_shape=SHAPE
    )
    assert found.verdict.word == "approximate"
    assert not found.certified.any()
    np.testing.assert_allclose(found.images, x, atol=1e-4)


def test_a_told_number_that_leaves_nothing_to_show_the_noise_is_refused():
    params = _params()
    keys = iter(jax.random.split(jax.random.key(3), 6))
    noise = jax.tree.map(lambda p: jax.random.normal(next(keys), p.shape, F32), params)
    found = closed_units.reconstruct_gradient(
        params, noise, key=jax.random.key(2), image_shape=SHAPE, num_images=36
    )
    assert found.verdict.word == "assumptions do not hold"


def test_no_direction_stands_out_where_all_vanish():
    """As on units whose signals were rounded to zero; and no division by zero."""
    assert unit_rows._least(np.zeros((3, 3)))[1] == 1.0
    assert unit_rows._least(np.diag([1e-12, 1.0, 2.0]))[1] == pytest.approx(1e6)
