"""Groups of flags that binaries share."""

import dataclasses

from experiments import _image_sets
from ntk_privacy import _checks
from ntk_privacy.data import Foretold
from ntk_privacy.method import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Images."""

    dataset: str = _image_sets.dataset_field("digits")
    image_size: int | None = _image_sets.size_field()
    data_dir: str | None = field(
        None, "Folder of the image sets; none: NTK_PRIVACY_DATA, else the cache."
    )
    download: bool = field(False, "Fetch the image set if it is not there.")
    fingerprint: str | None = _image_sets.fingerprint_field()

    def __post_init__(self):
        _image_sets.complete(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Source):
    """Images."""

    num_images: int | None = field(None, "Training images; none is all.")

    def __post_init__(self):
        super().__post_init__()
        if self.num_images is not None:
            _checks.at_least(1, num_images=self.num_images)

    def foretold(self) -> Foretold:
        """Returns what is known of the images before they are read."""
        return _image_sets.foretold(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested(Data):
    """Images."""

    num_test: int | None = field(None, "Test images; none is all of them.")

    def __post_init__(self):
        super().__post_init__()
        if self.num_test is not None:
            _checks.at_least(1, num_test=self.num_test)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Folder:
    """The run."""

    workdir: str = field("runs", "Folder of the results.")
    checkpoint_seconds: float = field(30.0, "Time between checkpoints.")
    progress: bool = field(True, "Show a progress bar.")

    def __post_init__(self):
        _checks.at_least(0, checkpoint_seconds=self.checkpoint_seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Folder):
    """The run."""

    seed: int = field(0, "Fixes images, initialisation and searches.")

    def __post_init__(self):
        super().__post_init__()
        _checks.at_least(0, seed=self.seed)


NOT_RESULTS = ("workdir", "progress", "checkpoint_seconds", "data_dir", "download")
"""What may differ when a run goes on in its folder."""
