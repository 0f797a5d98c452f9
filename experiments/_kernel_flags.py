"""Groups of flags of `experiments.kernel`."""

import dataclasses
from typing import Any, Literal

from experiments._groups import Run
from experiments._program import Asked
from experiments._task_images import TaskImages
from ntk_privacy import _checks
from ntk_privacy.kernels import named
from ntk_privacy.method import Method, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(TaskImages):
    """Images."""

    num_images: int = field(100, "Images N, balanced over the classes.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Training of the network."""

    train: bool = field(
        True, "Train the network, and measure how far its kernel moves."
    )
    stop_loss: float = field(1e-3, "Mean of (f - y)^2 / 2 at which training ends.")
    max_train_steps: int = field(2000, "Limit of training.")

    def __post_init__(self):
        _checks.at_least(1, max_train_steps=self.max_train_steps)
        _checks.positive(stop_loss=self.stop_loss)

    def passed_over(self) -> dict[str, str]:
        """Returns flags that are not read, each with the choice that makes it so."""
        names = ("stop_loss", "max_train_steps")
        return {} if self.train else dict.fromkeys(names, "--notrain")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Blocks of the kernel."""

    stream: bool = field(
        False, "Write the kernel block by block to kernel.npy instead of arrays.npz."
    )
    budget: float = field(
        named.BUDGET, "Working memory of a block, MiB, of --stream and of networks."
    )

    def __post_init__(self):
        _checks.positive(budget=self.budget)

    @property
    def bytes(self) -> int:
        """Working memory of a block."""
        return named.bytes_of(self.budget)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelRun(Run):
    """The run."""

    workdir: str = field("runs/kernel", "Folder of the results.")
    precision: Literal["float32", "float64"] = field("float32", "Of everything.")


def groups(method: Method[Any]) -> tuple[type, ...]:
    """Returns the groups of a kernel."""
    trained = (Training,) if "training" in method.wants else ()
    return (Images, *trained, Blocks, KernelRun)


def training(asked: Asked[Any]) -> Training | None:
    """Returns how the network is trained; None where there is no training."""
    if "training" not in asked.method.wants:
        return None
    flags = asked.group(Training)
    return flags if flags.train else None


def passed_over(asked: Asked[Any]) -> dict[str, str]:
    """Returns flags that are not read, each with the choice that makes it so."""
    if asked.group(Blocks).stream or "training" in asked.method.wants:
        return {}
    return {"budget": f"--kernel={asked.method.name} in one piece, without --stream"}


def check(asked: Asked[Any]) -> None:
    """Raises ValueError where values do not go together."""
    if asked.group(Blocks).stream and training(asked) is not None:
        raise ValueError(
            "stream=true keeps no kernel in memory to compare with: add --notrain."
        )
