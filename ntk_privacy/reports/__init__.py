"""Figures from results."""

from typing import TYPE_CHECKING

from ntk_privacy import _public

if TYPE_CHECKING:
    from ntk_privacy.reports import (
        atomic as atomic,
    )
    from ntk_privacy.reports import (
        audit_page as audit_page,
    )
    from ntk_privacy.reports import (
        comparison as comparison,
    )
    from ntk_privacy.reports import (
        files as files,
    )
    from ntk_privacy.reports import (
        loops as loops,
    )
    from ntk_privacy.reports import (
        plots as plots,
    )
    from ntk_privacy.reports import (
        progress as progress,
    )
    from ntk_privacy.reports import (
        reconstructions as reconstructions,
    )
    from ntk_privacy.reports import (
        shown as shown,
    )
    from ntk_privacy.reports import (
        tables as tables,
    )
    from ntk_privacy.reports import (
        workdir as workdir,
    )
    from ntk_privacy.reports.plots import curve as curve
    from ntk_privacy.reports.plots import gallery as gallery
    from ntk_privacy.reports.reconstructions import compared as compared
    from ntk_privacy.reports.shown import show as show

__all__ = [
    "atomic",
    "audit_page",
    "compared",
    "comparison",
    "curve",
    "files",
    "gallery",
    "loops",
    "plots",
    "progress",
    "reconstructions",
    "show",
    "shown",
    "tables",
    "workdir",
]

__dir__ = _public.names(__name__)
# Matplotlib is slow to import, and who writes a file needs none.
__getattr__ = _public.found_when_asked(
    __name__,
    {
        "compared": "ntk_privacy.reports.reconstructions:",
        "curve": "ntk_privacy.reports.plots:",
        "gallery": "ntk_privacy.reports.plots:",
        "show": "ntk_privacy.reports.shown:",
        "atomic": "ntk_privacy.reports.atomic",
        "audit_page": "ntk_privacy.reports.audit_page",
        "comparison": "ntk_privacy.reports.comparison",
        "files": "ntk_privacy.reports.files",
        "loops": "ntk_privacy.reports.loops",
        "plots": "ntk_privacy.reports.plots",
        "progress": "ntk_privacy.reports.progress",
        "reconstructions": "ntk_privacy.reports.reconstructions",
        "shown": "ntk_privacy.reports.shown",
        "tables": "ntk_privacy.reports.tables",
        "workdir": "ntk_privacy.reports.workdir",
    },
)
