"""Attacks a network that is any function from images to logits.

python -m examples.attack_a_network
"""

import jax
import jax.numpy as jnp

from ntk_privacy import evaluation, evasion


def logits_fn(images):
    """Tells bright images from dark ones."""
    bright = images.mean((1, 2, 3))
    return jnp.stack([0.5 - bright, bright - 0.5], axis=1)


def main() -> float:
    """Returns the share of images that PGD leaves."""
    images = jax.random.uniform(jax.random.key(0), (64, 4, 4, 1))
    labels = jnp.argmax(logits_fn(images), axis=1)
    found = evaluation.robust_accuracy.robust_accuracy(
        logits_fn,
        images,
        labels,
        key=jax.random.key(1),
        attacks=("pgd",),
        threat_model=evasion.ThreatModel("linf", 0.05),
    )
    print(f"clean {found.clean:.0%}, after PGD {found.accuracy['pgd']:.0%}")
    return found.accuracy["pgd"]


if __name__ == "__main__":
    main()
