"""Figures from results."""

from ntk_privacy.reports.plots import curve as curve
from ntk_privacy.reports.plots import gallery as gallery

__all__ = ["curve", "gallery"]
