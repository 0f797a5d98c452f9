"""What the page of an audit shows, in the order in which it stands there."""

import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ntk_privacy import _thumbnails
from ntk_privacy.auditing import Audit
from ntk_privacy.auditing.membership import Membership
from ntk_privacy.reconstruction.verdict import told_bound
from ntk_privacy.reports import canvas, plots

__all__ = ["MOST", "Line", "Page", "view"]

MOST = 200
"""Images in the gallery, at most."""

_KINDS = {"certain": "certain", "likely": "likely"}  # others: nothing
_WORDS = {
    "certain": "Certain: it can be read back",
    "likely": "Likely: read back, without a certificate",
    "nothing found": "Nothing found by these attacks",
    "not attacked": "Not attacked: not one attack takes what was given",
}


class Line(NamedTuple):
    """A name and a value, as text."""

    name: str
    value: str


class Section(NamedTuple):
    """A title, and sentences below it."""

    title: str
    lines: tuple[str, ...]


class Control(NamedTuple):
    """A row of the table of controls."""

    name: str
    expected: str
    found: str
    told: str


class Picture(NamedTuple):
    """A picture with its name; uri is empty where there is none."""

    uri: str
    alt: str
    name: str


class Shown(NamedTuple):
    """Pictures beside each other, with a caption."""

    title: str
    caption: str
    pictures: tuple[Picture, ...]


class Plot(NamedTuple):
    """A curve, the same in words, and a sentence."""

    uri: str
    alt: str
    told: str


class Members(NamedTuple):
    """told: a sentence. rows: figures."""

    told: str
    rows: tuple[Line, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Page:
    """Everything that a template is given, as text."""

    sentence: str
    word: str
    kind: str
    aspect: str
    figures: tuple[Line, ...]
    behind: tuple[Section, ...]
    gallery: tuple[Shown, ...]
    gallery_told: str
    plots: tuple[Plot, ...]
    controls: tuple[Control, ...]
    members: Members | None
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    rows_told: str
    notes: tuple[str, ...]
    command: str
    settings: tuple[Line, ...]


class _Row(NamedTuple):
    """A private image and what was found of it, or what was found alone."""

    truth: int | None
    found: int | None
    certified: bool
    error: float
    psnr: float | None
    ssim: float | None


def view(
    audit: Audit, *, command: str, versions: Mapping[str, str], pictures: bool = True
) -> Page:
    """Returns what a page shows.

    Args:
      audit: to tell.
      command: that made it.
      versions: of software, by name.
      pictures: whether to draw any.
    """
    verdict, rows = audit.verdict, _rows(audit)
    gallery = (*_gallery(audit, rows), *_distilled(audit)) if pictures else ()
    columns, cells = _table(audit, rows)
    return Page(
        sentence=verdict.sentence,
        word=_WORDS[verdict.word],
        kind=_KINDS.get(verdict.word, "nothing"),
        aspect=_aspect(audit),
        figures=tuple(_figures(audit)),
        behind=_behind(audit),
        gallery=gallery[:MOST],
        gallery_told=_gallery_told(audit, len(gallery)),
        plots=tuple(_plots(audit)) if pictures else (),
        controls=tuple(_controls(audit)),
        members=None if audit.membership is None else _members(audit.membership),
        columns=columns,
        rows=cells,
        rows_told="Sorted by certainty; error is a bound on the relative distance, "
        "where one was verified.",
        notes=tuple(audit.notes),
        command=command,
        settings=tuple(_settings(audit, versions)),
    )


def _aspect(audit: Audit) -> str:
    shape = audit.settings.get("image_shape")
    if shape is None and audit.private is not None:
        shape = audit.private.images.shape[1:]
    return "1" if shape is None else f"{shape[1]} / {shape[0]}"


def _figures(audit: Audit) -> Iterable[Line]:
    if audit.num_recovered is not None and audit.private is not None:
        count = len(audit.private.images)
        yield Line(
            "given images recovered (25 dB)", f"{audit.num_recovered} of {count}"
        )
    if audit.reconstruction is not None:
        yield Line("images with a certificate", str(audit.num_certified))
        known = audit.estimated_num_images
        told = "hidden" if known is None else str(known)
        yield Line("training images, by what was given", told)
    if audit.nearest is not None:
        count = len(audit.nearest.psnr)
        yield Line(
            "distilled images that are copies", f"{audit.nearest.num_copies} of {count}"
        )
    if audit.decoded is not None:
        told = f"{audit.decoded.originals} (and {audit.decoded.own} of the set itself)"
        yield Line("private images read back from a network trained on it", told)
    if audit.membership is not None:
        yield Line("area under the membership curve", f"{audit.membership.area:.3f}")


def _behind(audit: Audit) -> tuple[Section, ...]:
    told = audit.verdict
    sections = (
        Section("What it rests on", told.rests_on),
        Section("What was assumed", told.assumed),
        Section("Assumptions that the evidence supports", told.supported),
        Section("Assumptions that the evidence contradicts", told.contradicted),
        Section("What was tried", told.tried),
        Section("What was not tried", told.not_tried),
        Section("What to do about it", told.remedies),
    )
    return tuple(section for section in sections if section.lines)


def _rows(audit: Audit) -> list[_Row]:
    """Returns private images with what was found of them, then what is left over."""
    found, pairs = audit.reconstruction, audit.pairs
    if found is None:
        return []
    paired: dict[int, tuple[int, float, float]] = {}
    if pairs is not None:
        for i, j, psnr, ssim in zip(
            *(pairs.train_index, pairs.reconstruction_index, pairs.psnr, pairs.ssim),
            strict=True,
        ):
            paired[int(i)] = int(j), float(psnr), float(ssim)
    count = 0 if audit.private is None else len(audit.private.images)
    rows = []
    for i in range(count):
        j, psnr, ssim = paired.get(i, (None, None, None))
        rows.append(_row(found, i, j, psnr, ssim))
    used = {j for j, _, _ in paired.values()}
    rest = [j for j in range(len(found.images)) if j not in used]
    rows += [_row(found, None, j, None, None) for j in rest]
    return sorted(rows, key=_certainty)


def _row(
    found: Any, i: int | None, j: int | None, psnr: float | None, ssim: float | None
) -> _Row:
    sure = j is not None and bool(found.certified[j])
    error = math.inf if j is None else float(found.errors[j])
    return _Row(i, j, sure, error, psnr, ssim)


def _certainty(row: _Row) -> tuple[bool, float, float, bool]:
    psnr = -math.inf if row.psnr is None else row.psnr
    return not row.certified, -psnr, row.error, row.found is None


def _number(value: float | None, digits: str = ".3g") -> str:
    return "" if value is None or not math.isfinite(value) else format(value, digits)


def _gallery(audit: Audit, rows: Sequence[_Row]) -> Iterable[Shown]:
    private = audit.private
    for row in rows[:MOST]:
        pictures = []
        if private is not None:
            pictures.append(
                Picture("", "", "not given")
                if row.truth is None
                else Picture(
                    _thumbnails.data_uri(private.images[row.truth]),
                    f"Private image {row.truth + 1}",
                    "private",
                )
            )
        if row.found is None or audit.images is None:
            pictures.append(Picture("", "", "read back"))
        else:
            told = "certain" if row.certified else "an estimate"
            uri = _thumbnails.data_uri(audit.images[row.found])
            alt = f"Reconstruction {row.found + 1}, {told}"
            pictures.append(Picture(uri, alt, "read back"))
        number = row.truth if row.truth is not None else row.found
        kind = "Private image" if row.truth is not None else "Reconstruction"
        yield Shown(f"{kind} {(number or 0) + 1}", _caption(row), tuple(pictures))


def _caption(row: _Row) -> str:
    if row.found is None:
        return "Not read back."
    parts = ["certain" if row.certified else "an estimate"]
    if row.certified:
        parts.append(f"within {told_bound(row.error)} of its norm")
    if row.psnr is not None:
        told = "equal" if math.isinf(row.psnr) else f"{row.psnr:.0f} dB"
        parts.append(f"{told}{'' if row.psnr >= 25 else ', not recovered'}")
    return ", ".join(parts)


def _distilled(audit: Audit) -> Iterable[Shown]:
    made, near, private = audit.distilled, audit.nearest, audit.private
    if made is None or near is None or private is None:
        return
    for i in np.argsort(-near.psnr, kind="stable")[:MOST].tolist():
        j = int(near.psnr_index[i])
        copied = near.psnr[i] >= 25
        psnr = near.psnr[i]
        told = "equal" if math.isinf(psnr) else f"{psnr:.0f} dB"
        pictures = (
            Picture(
                _thumbnails.data_uri(private.images[j]),
                f"Private image {j + 1}, the nearest",
                "private, nearest",
            ),
            Picture(
                _thumbnails.data_uri(made.images[i]),
                f"Distilled image {i + 1}",
                "distilled",
            ),
        )
        caption = f"{told}: {'a copy' if copied else 'no copy'}"
        yield Shown(f"Distilled image {i + 1}", caption, pictures)


def _gallery_told(audit: Audit, count: int) -> str:
    told = "Sorted by certainty"
    if audit.private is not None:
        told = "Each private image beside what was read back of it, the surest first"
    more = f"; the first {MOST} of {count}" if count > MOST else ""
    return f"{told}{more}."


def _plots(audit: Audit) -> Iterable[Plot]:
    pairs, members = audit.pairs, audit.membership
    if pairs is not None and len(pairs.psnr):
        file = io.BytesIO()
        shape = audit.settings["image_shape"]
        curves = {"private images and their reconstructions": pairs.squared_distances}
        plots.curve(curves, file, image_shape=shape)
        yield Plot(
            _thumbnails.png_uri(file.getvalue()),
            f"Squared distances of {len(pairs.psnr)} pairs, ascending, from "
            f"{pairs.squared_distances[0]:.2g} to {pairs.squared_distances[-1]:.2g}.",
            "Squared distance of each private image to its reconstruction, the nearest "
            "first; below the line an image counts as recovered.",
        )
    if members is not None:
        file = io.BytesIO()
        with canvas.drawn(file, title="Membership") as axes:
            axes.plot([0, 1], [0, 1], ":", color="0.5", label="chance")
            told = f"area {members.area:.3f}"
            axes.step(
                *(members.false_positives, members.true_positives),
                where="post",
                label=told,
                linewidth=2,
            )
            axes.set_xlabel("unseen images called members")
            axes.set_ylabel("private images called members")
            axes.legend(frameon=False, loc="lower right")
        yield Plot(
            _thumbnails.png_uri(file.getvalue()),
            f"ROC curve of membership, {told}.",
            "Private images called members against unseen ones called so, as the "
            "threshold falls.",
        )


def _controls(audit: Audit) -> Iterable[Control]:
    controls = audit.controls
    if controls.wrong_weights is not None or controls.wrong_weights_told:
        count, recovered = controls.wrong_weights, controls.wrong_weights_recovered
        expected, seen = "0 certain", f"{count} certain"
        if recovered is not None:
            expected, seen = "0 certain, 0 recovered", f"{seen}, {recovered} recovered"
        yield Control(
            "the same attacks, the true change on weights with shuffled units",
            expected,
            "not run" if count is None else seen,
            controls.wrong_weights_told,
        )
    if controls.shuffled_recovered is not None:
        yield Control(
            "private images with shuffled pixels",
            "0 recovered",
            f"{controls.shuffled_recovered} recovered",
            "No reconstruction should lie near a private image whose pixels were put "
            "in another order.",
        )
    if controls.identified is not None:
        found = controls.identified
        first, count = int(np.sum(found.ranks == 1)), len(found.ranks)
        yield Control(
            f"each private image among {found.num_decoys} decoys",
            f"{count / (found.num_decoys + 1):.2g} of {count} first, by chance",
            f"{first} of {count} first",
            f"Decoys are {found.decoys}; the least p-value of one image is "
            f"{1 / (found.num_decoys + 1):.2g}.",
        )


def _members(found: Membership) -> Members:
    rows = [Line("Area under the curve", f"{found.area:.3f} (chance: 0.5)")]
    for rate in found.rates:
        known = rate.true_positives
        told = "not known from so few unseen images"
        told = told if known is None else f"{100 * known:.3g}%"
        rows.append(
            Line(f"True positives at {100 * rate.false_positives:g}% false ones", told)
        )
    rows.append(Line("Private images", str(len(found.members))))
    rows.append(Line("Unseen images", str(len(found.others))))
    bound = found.epsilon
    if bound.epsilon is not None:
        told = (
            f"{bound.epsilon:.2f} (delta={bound.delta:g}, {100 * bound.confidence:g}%"
        )
        rows.append(Line("Epsilon at least", f"{told} confidence)"))
    return Members(f"{found.told} {bound.told}", tuple(rows))


def _table(
    audit: Audit, rows: Sequence[_Row]
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    identified, members = audit.controls.identified, audit.membership
    columns = ["image", "certain", "error"]
    if audit.private is not None:
        columns += ["PSNR (dB)", "SSIM"]
        columns += ["rank among decoys", "p-value"] if identified is not None else []
        columns += ["share of the change"] if members is not None else []
    cells = []
    for row in rows:
        kind = "private" if row.truth is not None else "reconstruction"
        number = row.truth if row.truth is not None else row.found
        cell = [f"{kind} {(number or 0) + 1}", "yes" if row.certified else "no"]
        cell.append(told_bound(row.error) if row.certified else "")
        if audit.private is not None:
            cell += [_number(row.psnr, ".1f"), _number(row.ssim, ".3f")]
            i = row.truth
            if identified is not None:
                cell += (
                    ["", ""]
                    if i is None
                    else [str(identified.ranks[i]), f"{identified.p_values[i]:.2g}"]
                )
            if members is not None:
                cell.append("" if i is None else f"{members.members[i]:.2g}")
        cells.append(tuple(cell))
    return tuple(columns), tuple(cells)


def _settings(audit: Audit, versions: Mapping[str, str]) -> Iterable[Line]:
    for name, value in audit.settings.items():
        told = " x ".join(map(str, value)) if name == "image_shape" else str(value)
        yield Line(name.replace("_", " "), told)
    for name, value in versions.items():
        yield Line(f"{name} (version)" if name != "device" else name, str(value))
