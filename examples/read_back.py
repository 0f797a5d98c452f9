"""Trains a network on eight digits, and computes them from its weights.

python -m examples.read_back
"""

import jax

from ntk_privacy import data, evaluation, reconstruction, training


def main() -> int:
    """Returns how many of the eight come back, each with a certificate."""
    key = jax.random.key(0)
    digits = data.load("digits", num_train=8, key=key)
    victim = training.victim.train(
        digits.x_train,
        digits.y_train,
        width=256,
        dynamics="standard",
        stop_loss=1e-4,
        key=key,
    )
    known = reconstruction.evidence.of(victim, bounds=digits.bounds)
    attack = reconstruction.METHODS["closed_units"]
    found = attack.run(known, attack.configured(), key=key)
    pairs = evaluation.evaluate(digits.x_train, found.images, mean=digits.mean)
    print(f"{found.verdict.word}: {found.verdict.reason}")
    print(f"{pairs.num_recovered} of 8 within 25 dB")
    return int(found.certified.sum())


if __name__ == "__main__":
    main()
