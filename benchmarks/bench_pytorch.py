"""Training images from a PyTorch checkpoint alone: its seed is guessed, then read.

    python -m benchmarks.bench_pytorch --out=results/benchmarks/pytorch.json

Needs NTK_PRIVACY_DATA and PyTorch (`pip install torch`), which itself draws and trains
an MLP on MNIST, ten classes, cross-entropy, batches of 5. The attack is given the
weights after training, the sizes of the layers and 100,000 seeds. `s` are seconds of a
second attack, after compilation.
"""

import importlib
import time

import jax
import numpy as np

from benchmarks import _measure
from benchmarks.bench_closed_units import figures
from ntk_privacy import data
from ntk_privacy.reconstruction import closed_units, initialisation

ROWS = {
    "momentum": {"n": 20, "width": 512, "seed": 1234},
    "momentum, 50 images": {"n": 50, "width": 1024, "seed": 42},
    "plain steps": {"n": 20, "width": 512, "seed": 7, "momentum": 0.0, "rate": 0.1},
    "L2 decay 5e-4": {"n": 20, "width": 512, "seed": 2024, "decay": 5e-4},
    "AdamW": {"n": 20, "width": 512, "seed": 99_999, "rate": 1e-3, "adam": True},
}
_STEPS, _BATCH = 600, 5


def trained(row, images: np.ndarray, labels: np.ndarray):
    """Returns the state_dict after training by PyTorch, as arrays, and its loss."""
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise SystemExit(
            f"This trains by PyTorch ({error}): pip install torch."
        ) from error
    nn = torch.nn
    x, y = torch.tensor(images.tolist()), torch.tensor(labels.tolist())
    torch.manual_seed(row["seed"])
    net = nn.Sequential(
        nn.Linear(images.shape[1], row["width"]),
        nn.ReLU(),
        nn.Linear(row["width"], 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )
    rate = row.get("rate", 0.02)
    if row.get("adam"):
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    else:
        optimizer = torch.optim.SGD(
            net.parameters(),
            lr=rate,
            momentum=row.get("momentum", 0.9),
            weight_decay=row.get("decay", 0.0),
        )
    for _ in range(_STEPS):
        some = torch.randperm(len(x))[:_BATCH]
        loss = nn.functional.cross_entropy(net(x[some]), y[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    loss = float(nn.functional.cross_entropy(net(x), y))
    # By lists: a PyTorch of another NumPy gives no arrays.
    arrays = {k: np.array(v.tolist(), np.float32) for k, v in net.state_dict().items()}
    return arrays, loss


def attacked(weights):
    """Guesses the seed and reads the images; returns both, and seconds of each."""
    names = [k.removesuffix(".weight") for k in weights if k.endswith(".weight")]
    sizes = {name: weights[f"{name}.weight"].shape[::-1] for name in names}
    start = time.perf_counter()
    guess = initialisation.find_seed(initialisation.TorchLinear(sizes), weights)
    seconds, found, spent = time.perf_counter() - start, None, 0.0
    for _ in range(2 if guess.params_0 is not None else 0):
        start = time.perf_counter()
        found = closed_units.reconstruct(
            guess.params_0, weights, key=jax.random.key(0), image_shape=(28, 28, 1)
        )
        spent = time.perf_counter() - start
    return guess, found, seconds, spent


def main() -> None:
    options = _measure.arguments()
    rows = []
    for name, row in ROWS.items():
        whole = data.load(
            "mnist", task="all_classes", num_train=row["n"], key=jax.random.key(0)
        )
        images = np.asarray(whole.x_train, np.float32)
        labels = np.asarray(whole.y_train).argmax(1)
        weights, loss = trained(row, images.reshape(len(images), -1), labels)
        guess, found, seconds, spent = attacked(weights)
        rows.append(
            {
                "case": name,
                "N": row["n"],
                "seed": row["seed"],
                "loss": loss,
                "guessed": guess.seed,
                "correlation": guess.correlation,
                "runner_up": guess.runner_up,
                "seed_s": seconds,
                "word": None if found is None else found.verdict.word,
                **({} if found is None else figures(found, images)),
                "s": spent,
            }
        )
        _measure.report("pytorch", rows[-1:], None)
    _measure.report("pytorch", rows, options.out)


if __name__ == "__main__":
    main()
