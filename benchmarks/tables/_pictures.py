"""What the pictures of the pages were drawn from, one row each."""

from typing import NamedTuple


class Picture(NamedTuple):
    """A picture: its file, the stored one behind it, what makes both."""

    file: str
    stored: str
    command: str


_RECONSTRUCT = "python -m experiments.reconstruct"


def _bench(name: str, folder: str = "docs") -> Picture:
    stored, picture = f"results/benchmarks/{name}.json", f"{folder}/{name}.png"
    command = f"python -m benchmarks.bench_{name} --out={stored} --picture={picture}"
    return Picture(picture, stored, command)


def _audit(name: str, size: str) -> Picture:
    return Picture(
        f"docs/{name}.png",
        "results/audit/torch_mlp/results.json",
        "python -m examples.make_torch_mlp runs/torch; python -m experiments.audit "
        "--before=runs/torch/before.safetensors --after=runs/torch/after.safetensors "
        "--images=runs/torch/images --unseen=runs/torch/unseen "
        "--workdir=runs/torch/audit; chromium --headless --hide-scrollbars "
        f"--window-size={size} --screenshot=docs/{name}.png "
        "runs/torch/audit/report.html",
    )


def _study(paper: str, item: str) -> Picture:
    folder = f"results/study/{paper}_{item}"
    command = f"python -m experiments.study --paper={paper} --item={item} --scale=cpu"
    return Picture(f"{folder}/figure.png", f"{folder}/results.json", command)


def _stored(folder: str, picture: str, command: str) -> Picture:
    place = f"results/{folder}"
    return Picture(f"{place}/{picture}", f"{place}/results.json", command)


PICTURES = (
    *(_study("loo", item) for item in ("theorem1", "figure2", "figure4", "outliers")),
    *(_study("loo", item) for item in ("table1", "figure6")),
    _study("rdm", "lemma4_1"),
    _stored(
        "kernel/mnist_infinite_mlp_500",
        "kernel.png",
        "python -m experiments.kernel --kernel=infinite_mlp --dataset=mnist "
        "--num_train=500",
    ),
    _stored(
        "poison/direct",
        "poisons_0.png",
        "python -m experiments.poison --preset=cpu --dataset=cifar10 --attack=direct "
        "--methods=dm,rdm --num_seeds=5",
    ),
    _stored(
        "condense/dc_mnist_1_paper",
        "distilled.png",
        "python -m experiments.distill --method=dc --preset=paper --num_steps=200 "
        "--dataset=mnist --images_per_class=1 --evaluate",
    ),
    _stored(
        "condense/rdm_cifar10_10",
        "distilled.png",
        "python -m experiments.distill --method=rdm --preset=cpu --dataset=cifar10 "
        "--images_per_class=10 --evaluate",
    ),
    _stored(
        "reconstruct/mnist_max_margin_200",
        "ranked.png",
        f"{_RECONSTRUCT} --dataset=mnist --num_train=20 --width=200 "
        "--method=max_margin --num_steps=3000",
    ),
    Picture(
        "docs/gallery.png",
        "results/reconstruct/cifar10_standard_1024_closed_units/results.json",
        f"{_RECONSTRUCT} --method=closed_units --dynamics=standard --dataset=cifar10 "
        "--num_train=10 --width=1024 --batch_size=5 --num_epochs=500",
    ),
    _audit("audit_page", "1100,1500"),
    _audit("audit_page_phone", "390,1700"),
    Picture(
        "docs/kernel_distance.png",
        "results/kernel/mnist_empirical_mlp_1024/results.json",
        "python -m experiments.kernel --kernel=empirical_mlp --width=1024 "
        "--dataset=mnist --num_train=100",
    ),
    _bench("closed_units_reach"),
    _bench("reconstruction_curves"),
    _bench("shared_updates"),
    Picture(
        "results/reconstruct/mnist_linearized_1024_kkt/gallery.png",
        "results/reconstruct/mnist_linearized_1024_kkt/results.json",
        f"{_RECONSTRUCT} --num_train=20 --method=kkt --dataset=mnist --width=1024",
    ),
    Picture(
        "results/evade/cifar10_robust/adversarial.png",
        "results/evade/cifar10_robust/results.json",
        "python -m experiments.evade --train=adversarial --dataset=cifar10 --eps=4/255 "
        "--num_attacked=200",
    ),
    Picture(
        "results/robust/curvature_0/eigenvalues.png",
        "results/robust/curvature_0/results.json",
        "python -m experiments.distill --method=sre2l --regularizer=curvature "
        "--preset=cpu --dataset=cifar10 --num_train=2000 --num_test=400 "
        "--images_per_class=10 --evaluate --attacks=pgd100,mim --seed=0 "
        "--baseline=runs/sre2l",
    ),
)
