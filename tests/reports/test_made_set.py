"""A set is made once and read back; one whose loss is lost is told, and left."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ntk_privacy import data, distillation
from ntk_privacy.distillation import search, timed
from ntk_privacy.distillation.search import Distilled, Kept
from ntk_privacy.reports.loops import Loops
from ntk_privacy.reports.made_set import made_or_read
from ntk_privacy.reports.workdir import Workdir

KEY = jax.random.key(0)
RANDOM = distillation.METHODS["random"]


@dataclasses.dataclass(frozen=True)
class Config:
    learning_rate: float = 0.1
    diag_reg: float = 0.5


def _lost(*_, **__):
    return Distilled(
        images=jnp.zeros((2, 8, 8, 1)),
        labels=jnp.arange(2, dtype=jnp.int32),
        losses=np.asarray([1.0, 0.5, np.nan]),
        state=Kept(),
        nonfinite=jnp.asarray(True),
    )


def _made(folder, method, config, images):
    with Workdir(folder, {}) as workdir:
        loops = Loops(workdir, show=False)
        return made_or_read(method, config, images, key=KEY, loops=loops)


def test_a_set_is_read_back_and_a_foreign_file_is_told(tmp_path):
    whole = data.load_set("digits")
    images = whole.balanced(None, num_train=20, key=KEY)
    config = RANDOM.configured(num_distilled=10)
    first = _made(tmp_path, RANDOM, config, images)
    never = dataclasses.replace(RANDOM, run=_lost)
    again = _made(tmp_path, never, config, images)
    np.testing.assert_array_equal(first.images, again.images)
    np.savez(tmp_path / "arrays.npz", images=np.zeros(1))
    with pytest.raises(ValueError, match="holds images, not images, labels and losses"):
        _made(tmp_path, never, config, images)


def test_a_lost_loss_is_told_with_its_remedy_and_what_was_before_it(tmp_path):
    told = (
        "The loss of random is not finite after 3 steps: lower learning_rate=0.1, or "
        "raise diag_reg=0.5."
    )
    assert search.lost("random", Config(), _lost()) == told
    bare = search.lost("random", None, _lost())
    assert bare == "The loss of random is not finite after 3 steps."
    images, lost = data.load_set("digits"), dataclasses.replace(RANDOM, run=_lost)
    with pytest.raises(ValueError, match=f"{told} Do so in another workdir. The image"):
        _made(tmp_path, lost, Config(), images)
    with np.load(tmp_path / "last_good.npz") as stored:
        assert stored["images"].shape == (2, 8, 8, 1)
    assert not (tmp_path / "arrays.npz").exists()
    with pytest.raises(ValueError, match=told):
        timed.make(lost, Config(), images, key=KEY, seconds=1.0)
