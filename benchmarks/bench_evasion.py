"""Attacks against the same attacks in PyTorch: what they break, and how fast.

    python -m benchmarks.bench_evasion --models=FOLDER \
        --out=results/benchmarks/evasion.json --part=parity
    python -m benchmarks.bench_evasion --models=FOLDER \
        --out=results/benchmarks/evasion.json --part=speed

The models are those of `_evasion_models`, trained at the first run and kept in the
folder; PyTorch and torchattacks are the extra `bench`. Attacks get the images that the
model reads correctly, with the steps of standard AutoAttack on both sides: 100 of APGD
and FAB, 9 targets, 5000 queries of Square without stretching its schedule; PGD has 100
steps of eps / 4, MIM 20 of eps, CW 50 with c = 1, counted within 0.5 in l_2; ours
in torchattacks' form, which sees what is added to the logits (`evasion.cw`).

`parity` writes after every attack and goes on where it was stopped. `--images` is for
the cheap attacks, `--few` for the three slow ones; `--only=a,b` takes some models,
`--attacks=a,b` some attacks, `--eps=8/255` one bound. `--seed` is of the random draws
on both sides; the rows of another than 0 say so. "ensemble" is what none of
AutoAttack's four broke when each was run on all images, which is what the cascade
leaves but for its draws. `speed` runs each attack with the same model, on the same
images: ours, theirs, ours; compilation is what the first costs more. There AutoAttack
is the cascade itself. `cpu` is processor time, which other processes on the machine
disturb less than the clock.
"""

import copy
import functools
import itertools
import json
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _evasion_models as models
from benchmarks import _measure
from ntk_privacy.evasion import (
    ThreatModel,
    apgd,
    autoattack,
    cw,
    fab,
    mim,
    pgd,
    square,
)
from ntk_privacy.reports.atomic import replacing

try:
    import torch
    import torchattacks
except ImportError:
    torch = torchattacks = None

EPS = {"2/255": 2 / 255, "8/255": 8 / 255}
SLOW = ("apgd_t", "fab_t", "square")
ENSEMBLE = ("apgd_ce", *SLOW)
CW_RADIUS = 0.5
# The reference's own.
BATCH = 250

OURS: dict[str, Callable[..., Any]] = {
    "pgd": pgd.attack,
    "mim": mim.attack,
    "cw": functools.partial(cw.attack, form="torchattacks", constant=1.0),
    "apgd_ce": apgd.attack,
    "apgd_dlr": functools.partial(apgd.attack, loss="dlr"),
    "apgd_t": functools.partial(apgd.attack, loss="targeted-dlr"),
    "fab_t": functools.partial(fab.attack, stop_early=True),
    "square": square.attack,
    "autoattack": autoattack.attack,
}


def _their_auto(net: Any, eps: float, seed: int) -> Any:
    found = torchattacks.AutoAttack(net, eps=eps, seed=seed)
    for part in found._autoattack.attacks:
        if hasattr(part, "steps"):
            part.steps = 100
        if hasattr(part, "rescale_schedule"):
            part.rescale_schedule = False
    return found


def _theirs(name: str, net: Any, eps: float, seed: int) -> Any:
    options = {"eps": eps, "steps": 100, "seed": seed}
    return {
        "pgd": lambda: torchattacks.PGD(net, eps=eps, alpha=eps / 4, steps=100),
        "mim": lambda: torchattacks.MIFGSM(net, eps=eps, alpha=eps, steps=20),
        "cw": lambda: torchattacks.CW(net, c=1, steps=50, lr=0.01),
        "apgd_ce": lambda: torchattacks.APGD(net, loss="ce", **options),
        "apgd_dlr": lambda: torchattacks.APGD(net, loss="dlr", **options),
        "apgd_t": lambda: torchattacks.APGDT(net, n_classes=10, **options),
        "fab_t": lambda: torchattacks.FAB(net, multi_targeted=True, **options),
        "square": lambda: torchattacks.Square(
            net, eps=eps, n_queries=5000, resc_schedule=False, seed=seed
        ),
        "autoattack": lambda: _their_auto(net, eps, seed),
    }[name]()


class Case:
    """A model on both sides, and the images that it reads correctly."""

    def __init__(self, name: str, folder: str, num_images: int, seed: int = 0):
        self.seed, self.drawn = seed, f" seed {seed}" if seed else ""
        variables = models.trained(name, folder)
        self.logits_fn = models.ours(name, variables)
        self.net = models.theirs(name, variables)
        x, y = (a[:num_images] for a in models.images())
        read = np.asarray(self.logits_fn(jnp.asarray(x))).argmax(1)
        self.total, right = len(x), read == y
        self.rows = np.flatnonzero(right)
        self.x, self.y = x[right], y[right]

    def first(self, num_images: int) -> "Case":
        """Returns the same of the first images only."""
        found = copy.copy(self)
        found.total = min(num_images, self.total)
        count = int(np.sum(self.rows < found.total))
        found.x, found.y = self.x[:count], self.y[:count]
        return found

    def ours(self, attack: str, eps: float, count: int | None = None) -> np.ndarray:
        """Returns which of the images are broken."""
        x, y = jnp.asarray(self.x[:count]), jnp.asarray(self.y[:count])
        key = jax.random.key(self.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if attack == "cw":
                out = OURS[attack](self.logits_fn, x, y, key=key)
                return self._counted(out.images, out.success, count)
            out = OURS[attack](
                self.logits_fn, x, y, key=key, threat_model=ThreatModel("linf", eps)
            )
        return np.asarray(out.success)

    def theirs(self, attack: str, eps: float, count: int | None = None) -> np.ndarray:
        """Returns the same of torchattacks, in batches of the reference's size."""
        torch.manual_seed(self.seed)
        side = _theirs(attack, self.net, eps, self.seed)
        x, y = models.to_torch(self.x[:count]), torch.tensor(self.y[:count]).long()
        wrong, images = [], []
        for begin in range(0, len(x), BATCH):
            part = slice(begin, begin + BATCH)
            found = side(x[part], y[part]).detach()
            with torch.no_grad():
                wrong.append((self.net(found).argmax(1) != y[part]).cpu().numpy())
            images.append(found.cpu().numpy().transpose(0, 2, 3, 1))
        success = np.concatenate(wrong)
        if attack == "cw":
            return self._counted(np.concatenate(images), success, count)
        return success

    def _counted(self, images: Any, success: Any, count: int | None) -> np.ndarray:
        """Returns which images are broken within the radius of CW."""
        move = np.asarray(images) - self.x[:count]
        far = np.sqrt((move**2).sum((1, 2, 3)))
        return np.asarray(success) & (far <= CW_RADIUS)


def _read(out: pathlib.Path | None) -> dict[str, Any]:
    if out is not None and out.exists():
        return json.loads(out.read_text())
    return {"benchmark": "evasion", "jax": jax.__version__, "parity": {}, "speed": {}}


def _write(out: pathlib.Path | None, told: dict[str, Any]) -> None:
    if out is not None:
        with replacing(out) as temporary:
            temporary.write_text(json.dumps(told, indent=2) + "\n")


def _cell(case: Case, cell: dict[str, Any], side: str, attack: str, eps: float):
    """Attacks, and tells which of all images are left, as a row of 0 and 1."""
    start = time.perf_counter()
    broken = getattr(case, side)(attack, eps)
    cell[f"{side}_seconds"] = round(time.perf_counter() - start, 1)
    cell[side] = 100 * (len(broken) - int(broken.sum())) / case.total
    cell[f"{side}_left"] = "".join("01"[not b] for b in broken)


def parity(options: Any, told: dict[str, Any]) -> None:
    """Robust accuracy of every attack on every model, in percent of all images."""
    table = told["parity"]
    attacks = [a for a in options.attacks.split(",") if a != "autoattack"]
    for name in options.only.split(","):
        case = Case(name, options.models, options.images, options.seed)
        few = case.first(options.few)
        for attack in attacks:
            part = few if attack in SLOW else case
            for label in options.eps.split(",") if attack != "cw" else ["l2 0.5"]:
                cell = table.setdefault(f"{name} {label} {attack}{case.drawn}", {})
                if cell.get("images") != part.total:
                    cell.clear()
                cell |= {
                    "images": part.total,
                    "clean": 100 * len(part.y) / part.total,
                }
                for side in ("ours", "theirs"):
                    if side not in cell:
                        _cell(part, cell, side, attack, EPS.get(label, 0.0))
                        _write(options.out, told)
                gap = cell["ours"] - cell["theirs"]
                print(name, label, attack, cell["ours"], f"{gap:+.2f}", flush=True)
        for label in options.eps.split(","):
            _ensemble(table, f"{name} {label}", few)
        _write(options.out, told)


def _ensemble(table: dict[str, Any], at: str, few: Case) -> None:
    """Adds the share of images that none of AutoAttack's four broke."""
    cells = [table.get(f"{at} {attack}{few.drawn}", {}) for attack in ENSEMBLE]
    found = {"images": few.total, "clean": 100 * len(few.y) / few.total}
    for side in ("ours", "theirs"):
        rows = [cell.get(f"{side}_left", "") for cell in cells]
        if min(map(len, rows)) < len(few.y):
            return
        left = [
            set(bits) for bits in zip(*(r[: len(few.y)] for r in rows), strict=True)
        ]
        found[side] = 100 * sum(row == {"1"} for row in left) / few.total
    table[f"{at} ensemble{few.drawn}"] = found


def speed(options: Any, told: dict[str, Any]) -> None:
    """Seconds of every attack on both sides, with the same model and images."""
    for name in options.only.split(","):
        case = Case(name, options.models, options.images, options.seed)
        cells = itertools.product(options.attacks.split(","), options.eps.split(","))
        for attack, bound in cells:
            label = f"{name} {bound} {attack}{case.drawn}"
            if label in told["speed"]:
                continue
            eps, took, spent, left = EPS[bound], [], [], []
            for side in (case.ours, case.theirs, case.ours):
                start, before = time.perf_counter(), time.process_time()
                broken = side(attack, eps)
                took.append(time.perf_counter() - start)
                spent.append(time.process_time() - before)
                left.append(100 * float(np.sum(~broken)) / case.total)
            told["speed"][label] = {
                "images": len(case.y),
                "robust_ours": left[0],
                "robust_theirs": left[1],
                "threads": options.threads,
                "ours": took[2],
                "theirs": took[1],
                "compile": max(took[0] - took[2], 0.0),
                "times_faster": took[1] / took[2],
                "cpu_ours": spent[2],
                "cpu_theirs": spent[1],
                "times_less_cpu": spent[1] / spent[2],
            }
            _write(options.out, told)
            row = {"case": label, **told["speed"][label]}
            _measure.report("evasion", [row], None)


def main() -> None:
    options = _measure.arguments(
        part="parity",
        models="runs/evasion_models",
        only=",".join(name for name, r in models.RECIPES.items() if r.width < 64),
        attacks=",".join(OURS),
        images=500,
        few=500,
        eps=",".join(EPS),
        threads=2,
        seed=0,
    )
    if torchattacks is None:
        raise SystemExit("PyTorch or torchattacks is not installed: install .[bench]")
    for name, known in (("only", models.RECIPES), ("attacks", OURS), ("eps", EPS)):
        for value in getattr(options, name).split(","):
            if value not in known:
                raise SystemExit(f"{name}={value}: use some of {', '.join(known)}.")
    torch.set_num_threads(options.threads)
    torch.set_default_device(_measure.peer_device())
    told = _read(options.out)
    {"parity": parity, "speed": speed}[options.part](options, told)


if __name__ == "__main__":
    main()
