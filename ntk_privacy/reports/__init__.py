"""Figures from results."""

from ntk_privacy.reports.plots import curve as curve
from ntk_privacy.reports.plots import gallery as gallery
from ntk_privacy.reports.reconstructions import compared as compared
from ntk_privacy.reports.shown import show as show

__all__ = ["compared", "curve", "gallery", "show"]
