"""Figures from results."""

from typing import TYPE_CHECKING

from ntk_privacy import _public

if TYPE_CHECKING:
    from ntk_privacy.reports.plots import curve as curve
    from ntk_privacy.reports.plots import gallery as gallery
    from ntk_privacy.reports.reconstructions import compared as compared
    from ntk_privacy.reports.shown import show as show

__all__ = ["compared", "curve", "gallery", "show"]

__dir__ = _public.names(__name__)
# Matplotlib is slow to import, and who writes a file needs none.
__getattr__ = _public.found_when_asked(
    __name__,
    {
        "compared": "ntk_privacy.reports.reconstructions:",
        "curve": "ntk_privacy.reports.plots:",
        "gallery": "ntk_privacy.reports.plots:",
        "show": "ntk_privacy.reports.shown:",
    },
)
