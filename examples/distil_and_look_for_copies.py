"""Distils forty digits into four, and counts those that are one of the forty.

python -m examples.distil_and_look_for_copies
"""

import jax

from ntk_privacy import data, distillation, evaluation


def main() -> dict[str, int]:
    """Returns the copies in each set: real images, and RKIP with noise."""
    key = jax.random.key(0)
    images = data.load_set("digits").balanced(num_train=40, key=key)
    judge = evaluation.copies.JUDGE
    copies = {}
    for name, given in (("random", {}), ("rkip_noise", {"num_steps": 200})):
        method = distillation.METHODS[name]
        config = method.configured(num_distilled=4, **given)
        made = method.run(images, config, key=key)
        figures = judge.run(images, made, judge.configured(), key=key).figures
        copies[name] = figures["num_copies"]
        print(f"{name}: {copies[name]} of 4 are training images")
    return copies


if __name__ == "__main__":
    main()
