"""An audit as one page that needs nothing else, as text, and as figures.

The page holds its pictures and styles; it asks no network for anything, and is read
without its script, which only sorts and enlarges. What users name is escaped.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jinja2
import markupsafe

from ntk_privacy.auditing import Audit
from ntk_privacy.reports import audit_view
from ntk_privacy.reports.atomic import replacing

__all__ = ["figures", "html", "markdown", "write"]


def _on_one_line(text: object) -> str:
    """Returns text as a block of code takes it, where nothing is escaped."""
    return " ".join(str(text).split())


def _plain(text: object) -> str:
    """Returns text that Markdown takes as such, on one line."""
    line = _on_one_line(text)
    marks = ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("[", "\\["), ("*", "\\*")
    for mark, harmless in marks:
        line = line.replace(mark, harmless)
    return line


def _coded(text: str) -> markupsafe.Markup:
    """Returns text, escaped, with what stands between backticks as code."""
    parts = [markupsafe.escape(part) for part in text.split("`")]
    last = len(parts) - 1
    for i in range(1, last if last % 2 else last + 1, 2):
        parts[i] = markupsafe.Markup("<code>{}</code>").format(parts[i])
    return markupsafe.Markup("").join(parts)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ntk_privacy.reports"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
    )
    environment.filters |= {"plain": _plain, "coded": _coded, "oneline": _on_one_line}
    return environment


def html(
    audit: Audit, *, command: str = "", versions: Mapping[str, str] | None = None
) -> str:
    """Returns the page.

    Args:
      audit: to tell.
      command: that made it.
      versions: of software, by name.

    Example:
      >>> import numpy as np
      >>> import ntk_privacy
      >>> from ntk_privacy.reports import audit_page
      >>> x = np.random.default_rng(0).random((4, 8, 8, 1))
      >>> found = ntk_privacy.audit(distilled=x[:2], images=x)
      >>> "2 of 2 distilled images are copies" in audit_page.html(found)
      True
    """
    view = audit_view.view(audit, command=command, versions=versions or {})
    return _environment().get_template("audit.html.j2").render(page=view)


def markdown(
    audit: Audit, *, command: str = "", versions: Mapping[str, str] | None = None
) -> str:
    """Returns the same as text, without pictures.

    Args: those of `html`.
    """
    view = audit_view.view(
        audit, command=command, versions=versions or {}, pictures=False
    )
    return _environment().get_template("audit.md.j2").render(page=view)


def write(
    audit: Audit,
    folder: str | pathlib.Path,
    *,
    command: str = "",
    versions: Mapping[str, str] | None = None,
) -> None:
    """Writes report.html and report.md, each whole or not at all.

    Args:
      audit: to tell.
      folder: made if it is missing.
      command: that made it.
      versions: of software, by name.
    """
    told: dict[str, Any] = {"command": command, "versions": versions}
    for name, text in (
        ("report.html", html(audit, **told)),
        ("report.md", markdown(audit, **told)),
    ):
        with replacing(pathlib.Path(folder, name)) as temporary:
            temporary.write_text(text, encoding="utf-8")


def figures(audit: Audit) -> dict[str, Any]:
    """Returns what a file of results holds of an audit.

    Args:
      audit: to tell.
    """
    behind = dataclasses.asdict(audit.verdict)
    told: dict[str, Any] = {
        "verdict": behind.pop("sentence"),
        "verdict_word": behind.pop("word"),
        "num_recovered": audit.num_recovered,
        "num_certified": audit.num_certified,
        "estimated_num_images": audit.estimated_num_images,
        "num_reconstructed": 0 if audit.images is None else len(audit.images),
        "notes": audit.notes,
        **behind,
    }
    found, pairs, nearest = audit.reconstruction, audit.pairs, audit.nearest
    if found is not None:
        told["reconstruction"] = {
            "verdict": found.verdict,
            "sources": found.sources,
            "certified": found.certified,
            "errors": found.errors,
        }
    if pairs is not None:
        names = ("train_index", "reconstruction_index", "psnr", "ssim", "distances")
        told["pairs"] = {name: getattr(pairs, name) for name in names}
    told["controls"] = audit.controls
    if audit.membership is not None:
        told["membership"] = audit.membership
    if nearest is not None:
        told["distilled"] = {
            "num_copies": nearest.num_copies,
            "nearest": nearest.psnr_index,
            "psnr": nearest.psnr,
            "decoded": audit.decoded,
        }
    return told | {"settings": dict(audit.settings)}
