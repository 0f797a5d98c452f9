"""Places are refilled in order, and nothing depends on how many there are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy.evasion import ThreatModel, apgd, fab, losses, pool, square, task

KEY = jax.random.key(2)


@pytest.fixture(scope="module")
def work(toy):
    model = ThreatModel("linf", 8 / 255)
    return task.prepare(toy.logits_fn, toy.x, toy.y, key=KEY, threat_model=model)


def _count(limits, *, closes):
    """A walk that counts to a limit of its image, run by run."""

    def begin(spot, score):
        return jnp.zeros_like(spot.row), score

    def advance(spot, state, key):
        del spot, key
        return state[0] + 1, state[1]

    def outcome(spot, state):
        done = state[0] >= limits[spot.row]
        which = spot.run.astype(jnp.float32)
        images = jnp.zeros_like(spot.task.x) + which[:, None, None, None]
        # The run before the last is the best; ties go to the first.
        score = jnp.abs(spot.run - 1).astype(jnp.float32)
        return pool.Outcome(
            images, score, state[0], done, done & closes & (spot.run == 1)
        )

    return pool.Walk(begin, advance, outcome)


@pytest.mark.parametrize("num_places", [1, 3, 12])
@pytest.mark.parametrize("closes", [False, True])
def test_every_run_of_every_active_image_is_walked_once(work, num_places, closes):
    limits = np.array([9, 1, 5, 2, 2, 7, 1, 9, 3, 3, 4, 6], np.int32)
    targets = jnp.tile(work.y, (3, 1))

    @jax.jit
    def call(work):
        walk = _count(jnp.asarray(limits), closes=closes)
        return pool.run(work, targets, walk, KEY, num_places=num_places).best

    best = call(work)
    active = np.asarray(work.active)
    assert not active[0]
    np.testing.assert_array_equal(best.score, np.where(active, 0, np.inf))
    np.testing.assert_array_equal(best.images[:, 0, 0, 0][active], 1)
    np.testing.assert_array_equal(best.images[0], work.x[0])
    spent = np.asarray(best.queries)
    if not closes:
        np.testing.assert_array_equal(spent, np.where(active, 3 * limits, 0))
    elif num_places == 1:
        # The third run never starts: the second closed the image.
        np.testing.assert_array_equal(spent, np.where(active, 2 * limits, 0))
    np.testing.assert_array_equal(best.closed, active & closes)


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(
            functools.partial(apgd.run, num_steps=8, num_restarts=2),
            marks=pytest.mark.slow,
        ),
        functools.partial(fab.run, num_steps=4, num_targets=2, num_restarts=2),
        functools.partial(square.run, num_queries=20),
    ],
    ids=["apgd", "fab", "square"],
)
def test_results_do_not_depend_on_the_number_of_places(monkeypatch, work, attack):
    whole = attack(work, key=KEY, norm="linf")
    monkeypatch.setattr(task, "_BATCH", {"cpu": 5})
    monkeypatch.setattr(pool, "_SHRINKS", {"cpu": 1})
    few = attack(work, key=KEY, norm="linf")
    np.testing.assert_array_equal(whole.success, few.success)
    assert 0 < int(jnp.sum(whole.success)) < 10
    once = np.asarray(whole.queries) == np.asarray(few.queries)
    np.testing.assert_allclose(whole.images[once], few.images[once], atol=1e-6, rtol=0)
    assert np.sum(once) > 6


def test_the_size_follows_the_work(work):
    assert pool.places(work, 9) == 12
    work = work._replace(y=jnp.tile(work.y, 50))
    assert pool.places(work, 9) == 32
    for runs, count, size in ((1, 500, 32), (1, 40, 24), (1, 9, 12), (9, 4, 12)):
        assert pool.places(work, runs, count) == size


def test_blocks_of_a_batch_are_the_batch(work, monkeypatch):
    def call():
        return task.evaluate(
            work.model, losses.cross_entropy, work.x, work.y, work.y, KEY
        )

    whole = call()
    monkeypatch.setattr(task, "_BATCH", {"cpu": 5})
    for one, two in zip(whole, call(), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.parametrize(
    ("kept", "sizes"), [(0.5, [12, 6, 3]), (0.75, [12, 9, 6, 4, 3, 2])]
)
def test_places_are_given_up_as_images_end(monkeypatch, work, kept, sizes):
    monkeypatch.setattr(pool, "_SHRINKS", {"cpu": 2})
    limits = jnp.arange(1, 13, dtype=jnp.int32)
    called, inside = [], []

    @functools.partial(jax.jit, static_argnames=("num_places", "kept"))
    def advance(work, carry, *, num_places, kept):
        called.append(num_places)
        walk = _count(limits, closes=False)
        targets = work.y[None]
        return pool.run(
            work, targets, walk, KEY, carry, num_places=num_places, kept=kept
        )

    def counted(*args, **options):
        carry = advance(*args, **options)
        inside.append(int(jnp.sum(carry.spot.task.active)))
        return carry

    best = pool.drive(functools.partial(counted, kept=kept), 12, work, kept=kept)
    assert called == sizes
    assert [*sizes[1:], 0] == inside
    spent = np.where(work.active, limits, 0)
    np.testing.assert_array_equal(best.queries, spent)
