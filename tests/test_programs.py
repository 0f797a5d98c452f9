"""Programs are shared by equal functions and go with them."""

import dataclasses
import functools
import gc
import weakref

import chex
import jax
import jax.numpy as jnp
import pytest

from ntk_privacy import _loop, _programs, curvature
from ntk_privacy.kernels import blockwise, empirical, products

X = jnp.ones((3, 4))
PARAMS = {"w": jnp.ones((4, 2))}


def counted():
    """Returns a program, and how often it was traced."""
    traces = []

    @_programs.jit(num_static=2)
    def run(fn, factor, x):
        traces.append(None)
        return fn(x) * factor

    return run, traces


class Scaled:
    def times(self, x):
        return 2 * x


@dataclasses.dataclass(frozen=True)
class Step:
    fn: object
    rate: float = 1.0

    def __call__(self, x):
        return self.fn(x)


def test_a_function_is_traced_once_per_shape_and_static_argument():
    run, traces = counted()
    double = lambda x: 2 * x  # noqa: E731
    for _ in range(3):
        chex.assert_trees_all_equal(run(double, 3.0, X), 6 * X)
    assert len(traces) == 1
    run(double, 3.0, X[:1])
    run(double, 4.0, X)
    assert len(traces) == 3
    run(lambda x: 2 * x, 3.0, X)
    assert len(traces) == 4


def test_what_is_equal_shares_a_program():
    run, traces = counted()
    owner, double = Scaled(), lambda x: 2 * x
    for _ in range(2):
        run(owner.times, 1.0, X)  # a bound method is a new object each time
        run(Step(double), 1.0, X)
        run(Step(Step(double), 2.0), 1.0, X)
    assert len(traces) == 3
    run(Step(double, 3.0), 1.0, X)
    run(Scaled().times, 1.0, X)
    assert len(traces) == 5


def test_what_has_no_hash_runs_all_the_same():
    run, traces = counted()

    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return 2 * x

    for _ in range(2):
        chex.assert_trees_all_equal(run(Unhashable(), 1.0, X), 2 * X)
    assert len(traces) == 2


def test_a_memo_forgets_the_oldest():
    memo = _programs.Memo(most=3)
    for i in range(10):
        assert memo.get(("key", i), lambda i=i: i) == i
    assert len(memo) == 3
    assert memo.get(("key", 9), lambda: "anew") == 9
    assert memo.get(("key", 0), lambda: "anew") == "anew"


def _network(statistics):
    return lambda p, x: x @ p["w"] + statistics[0, 0]


def _loss(statistics):
    return lambda p, x: jnp.sum(x * x, axis=1) * statistics[0, 0]


CALLS = {
    "jacobian": lambda s: _with(
        _network(s), lambda f: empirical.ntk(f, PARAMS, X, method="jacobian")
    ),
    "auto": lambda s: _with(_network(s), lambda f: empirical.ntk(f, PARAMS, X)),
    "diagonal": lambda s: _with(
        _network(s), lambda f: empirical.diagonal(f, PARAMS, X)
    ),
    "product": lambda s: _with(
        _network(s),
        lambda f: products.ntk_vector_product(f, PARAMS, X, None, jnp.ones((3, 2))),
    ),
    "partial": lambda s: _with(
        functools.partial(lambda s, p, x: x @ p["w"] + s[0, 0], s),
        lambda f: empirical.ntk(f, PARAMS, X),
    ),
    "method": lambda s: _with(Net(s), lambda f: empirical.ntk(f.apply, PARAMS, X)),
    "jitted": lambda s: _with(
        jax.jit(_network(s)), lambda f: empirical.ntk(f, PARAMS, X)
    ),
    "eigenvalues": lambda s: _with(
        _loss(s),
        lambda f: curvature.top_eigenvalues(f, 1.0, X, key=jax.random.key(0)),
    ),
    "blocks": lambda s: _with(
        lambda a, b: a @ b.T + s[0, 0],
        lambda f: blockwise.product(f, X, X, jnp.ones((3, 1)), block_size=2),
    ),
    "loop": lambda s: _with(
        lambda state, i, data: (state + s[0, 0], {}),
        lambda f: _loop.run(f, jnp.zeros(()), num_steps=3),
    ),
    "loop_of_a_step": lambda s: _with(
        lambda x: x + s[0, 0],
        lambda f: _loop.run(LoopStep(f), jnp.zeros(()), num_steps=3),
    ),
}


class Net:
    def __init__(self, statistics):
        self.statistics = statistics

    def apply(self, params, x):
        return x @ params["w"] + self.statistics[0, 0]


@dataclasses.dataclass(frozen=True)
class LoopStep:
    fn: object

    def __call__(self, state, i, data):
        return self.fn(state), {}


def _with(function, call):
    call(function)
    return weakref.ref(function)


@pytest.mark.parametrize("name", CALLS)
def test_a_function_goes_with_what_it_closes_over(name):
    left = []
    for value in range(2):
        statistics = jnp.full((50, 50), float(value))
        left += [CALLS[name](statistics), weakref.ref(statistics)]
        del statistics
    gc.collect()
    assert [r() for r in left] == [None] * 4
