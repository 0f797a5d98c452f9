"""Flags that binaries share: the run."""

import dataclasses

from ntk_privacy import _checks
from ntk_privacy.method import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """The run."""

    workdir: str = field("runs", "Folder of the results.")
    checkpoint_seconds: float = field(30.0, "Time between checkpoints.")
    progress: bool = field(True, "Show a progress bar.")
    seed: int = field(
        0, "Fixes images, initialisation and searches.", former=("first_seed",)
    )
    compilation_cache: bool = field(
        True, "Keep compiled programs for later runs, in the user's cache folder."
    )
    distributed: bool = field(
        False,
        "Run as one of several processes, told of by JAX_COORDINATOR_ADDRESS, "
        "JAX_NUM_PROCESSES and JAX_PROCESS_ID, or by the cluster; the first one "
        "writes and prints.",
    )

    def __post_init__(self):
        _checks.at_least(0, checkpoint_seconds=self.checkpoint_seconds, seed=self.seed)


NOT_RESULTS = (
    *("workdir", "progress", "checkpoint_seconds", "data_dir", "download"),
    *("distributed", "compilation_cache"),
)
"""What may differ when a run goes on in its folder."""
