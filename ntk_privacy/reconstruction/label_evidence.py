r"""What the trained network's outputs say against a decoded image.

Positive multiples $t_j x$ of one image share all gates of a network without initial
biases, so their gradients add up to that at one image of the ray, their mean weighted
by the duals. The trained network is affine in t there: equal labels, once fitted, leave
it flat along the ray, and other labels leave their mean without a label.
"""

import numpy as np
from jaxtyping import Bool, Float

from ntk_privacy.reconstruction import layer_inversion

__all__ = ["doubts", "outputs"]

# Slope over output: about 1 at an image of its own, for only biases add to a
# homogeneous network.
_FLAT = 0.05
# Outputs that agree to the first are one label; one off by more than the second, in
# units of the spread of labels, is none.
_SAME, _OTHER = 0.02, 0.1
# Share of the images that must sit on a label before one is called implausible.
_MOST = 0.7


def outputs(
    layers: layer_inversion.Layers, inputs: Float[np.ndarray, "m d"]
) -> tuple[Float[np.ndarray, "m c"], Float[np.ndarray, "m c"]]:
    """Outputs after training, linearized, and their slope along each image's ray.

    A forward pass of values and of tangents in the direction of the change, with the
    gates of the images; along a ray the outputs are affine, so the slope is the
    difference to the same pass at zero.

    Args:
      layers: of the network, and what training changed.
      inputs: images, flattened.
    """
    count = len(inputs)
    x = np.concatenate([inputs, np.zeros_like(inputs)])
    dtype = layers.kernels[0].dtype
    x, tangent = x.astype(dtype), np.zeros_like(x, dtype)
    last = len(layers.kernels) - 1
    for k, (kernel, bias) in enumerate(zip(layers.kernels, layers.biases, strict=True)):
        change = layers.kernel_changes[k].astype(dtype)
        tangent = tangent @ kernel + x @ change
        tangent += layers.bias_changes[k].astype(dtype)
        x = x @ kernel + bias
        if k < last:
            gates = np.tile(x[:count] > 0, (2, 1))
            x, tangent = x * gates, tangent * gates
    out = (x + tangent).astype(np.float64)
    return out[:count], out[:count] - out[count:]


def _without_label(out: Float[np.ndarray, "m c"]) -> Bool[np.ndarray, " m"]:
    """Outputs unlike those of most images, where most sit on two labels.

    With several outputs labels are one-hot codes: sorted, they are one and the same.
    """
    nothing = np.zeros(len(out), bool)
    one = out.shape[1] == 1
    codes = out if one else np.sort(out, axis=1)
    spread = float(np.max(np.median(np.abs(out), axis=0)))
    far = np.max(np.abs(codes[:, None] - codes[None]), axis=2)
    free, labels = ~nothing, []
    for _ in range(2 if one else 1):
        members = (far < _SAME * spread) & free
        label = int(members.sum(1).argmax())
        if members[label].sum() < 2:
            return nothing
        free &= ~members[label]
        labels.append(label)
    if np.mean(~free) < _MOST:
        return nothing  # not trained to the end, or labels of many values
    return np.min(far[:, labels], axis=1) > _OTHER * spread


def doubts(
    layers: layer_inversion.Layers, inputs: Float[np.ndarray, "m d"]
) -> tuple[Bool[np.ndarray, " m"], list[str]]:
    """Returns which images stand for several, and why, in words.

    Args:
      layers: of the network, with the features that decoding used.
      inputs: flat images, certain but for this.
    """
    out, slope = outputs(layers, inputs)
    size = np.maximum(np.max(np.abs(out), axis=1), 1e-300)
    flat = np.max(np.abs(slope), axis=1) < _FLAT * size
    strange = _without_label(out) & ~flat
    notes = []
    if flat.any():
        notes.append(
            f"{int(flat.sum())} not certified: the trained network is flat along its "
            "ray, as where several training images are multiples of it, or one is "
            "blank and has its label"
        )
    if strange.any():
        notes.append(
            f"{int(strange.sum())} not certified: the trained network gives it none of "
            "the others' labels, as where it stands for several training images that "
            "share all gates, such as positive multiples of each other"
        )
    return flat | strange, notes
