"""Attacks that read training images back from weights.

`METHODS` has one row each, of one contract: `run(evidence, config, *, key, stage)`.
`closed_units` reads images from the first layer alone, whatever the loss and the
features did; `algebraic` decodes them from ReLU gates where training stayed linear;
`kkt` searches for images that explain the change of the weights; `auto` tries these in
turn; `max_margin` needs the final weights alone; `unrolled` differentiates the whole
training, where its recipe is known; `adapter` reads low-rank factors
(`adapter_factors`, `adapter_replay`). `replay.replay` gives the search
features along the training that recovered images explain, and
`initialisation.find_seed` gives all of them the weights before training where only
their seed can be guessed, and `known_start` reads one image, like their mean, where
nothing but biases of zero is known of the start. `shared_labels` tells which label each
image of a gradient had. `heads` reads the embeddings that a head was trained on, and
`through_trunk` looks for images that have them. `evidence_files` makes evidence of the
weights that people have.

`kkt` is the attack of Loo et al. (arXiv:2302.01428), `max_margin` that of Haim et al.
(arXiv:2206.07758); the others are this project's own, but for what their modules name.
"""

from ntk_privacy import _public
from ntk_privacy.reconstruction import (
    adapter,
    adapter_factors,
    adapter_replay,
    algebraic,
    auto,
    closed_units,
    evidence,
    evidence_files,
    heads,
    initialisation,
    kkt,
    known_start,
    known_trunk,
    max_margin,
    replay,
    shared_labels,
    through_trunk,
    unrolled,
)
from ntk_privacy.reconstruction.evidence import Evidence
from ntk_privacy.reconstruction.methods import METHODS
from ntk_privacy.reconstruction.result import Reconstruction

__all__ = [
    "METHODS",
    "Evidence",
    "Reconstruction",
    "adapter",
    "adapter_factors",
    "adapter_replay",
    "algebraic",
    "auto",
    "closed_units",
    "evidence",
    "evidence_files",
    "heads",
    "initialisation",
    "kkt",
    "known_start",
    "known_trunk",
    "max_margin",
    "replay",
    "shared_labels",
    "through_trunk",
    "unrolled",
]

__dir__ = _public.names(__name__)
