"""What an audit says, in plain words: one sentence first, then what it rests on.

It never says that anything is safe: attacks that find nothing prove nothing.
"""

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from ntk_privacy.auditing import distilled_sets
from ntk_privacy.auditing.attack import Attacked
from ntk_privacy.auditing.distilled_sets import Decoded
from ntk_privacy.auditing.recipes import KnownTraining
from ntk_privacy.reconstruction import Evidence

__all__ = ["NOTHING", "Copies", "Counts", "Statement", "Word", "state"]

Word = Literal["certain", "likely", "nothing found", "not attacked"]

NOTHING = "nothing found by these attacks"
_DISTILL = (
    "Publish, in place of what was trained on the images, a distilled set or what is "
    "trained on one: `python -m experiments.distill --method=rkip`; audit it by "
    "`--distilled=FILE --images=...`."
)
_NOISE = (
    "Where the network itself must be published, train it with differential privacy; "
    "noise of a size that is stated is the one defence with a proof."
)
_MORE = (
    "Give the weights before training too, or their seed: those who publish them, or "
    "start from a public network, give them to everybody."
)
_AGAIN = (
    "Audit again before you publish what is trained longer, on fewer images, or wider: "
    "each of these shows more."
)


class Counts(NamedTuple):
    """What was counted.

    Attributes:
      images: reconstructed ones.
      certified: of them, with a bound that was verified.
      estimated: N, as the weights show it.
      private: images given to compare with; None without.
      recovered: of them, at 25 dB.
      certain: of these, by a certified image.
      up_to_brightness: of the private ones, those that are a reconstructed one up to
        brightness and contrast; counted where others count for nothing.
    """

    images: int
    certified: int
    estimated: int | None
    private: int | None = None
    recovered: int | None = None
    certain: int | None = None
    up_to_brightness: int = 0


class Copies(NamedTuple):
    """Distilled images, how many of them are private ones at 25 dB, and what a network
    gives away that is trained on them; None where none was attacked."""  # noqa: D205, D209

    distilled: int
    copies: int
    decoded: Decoded | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
    """The verdict, and what stands behind it.

    Attributes:
      sentence: the verdict.
      word: "certain": images with a certificate, or copies in plain sight; "likely":
        images recovered or estimated without one; "nothing found": by these attacks;
        "not attacked": none takes what was given.
      rests_on: figures that decided.
      assumed: what nothing here shows.
      supported, contradicted: assumptions that the evidence bears out, or not.
      tried, not_tried: attacks.
      remedies: what to do.
    """

    sentence: str
    word: Word
    rests_on: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    supported: tuple[str, ...] = ()
    contradicted: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    not_tried: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.sentence


def state(
    attacked: Attacked | None,
    counts: Counts | None,
    copies: Copies | None = None,
    training: KnownTraining | None = None,
) -> Statement:
    """Returns the statement of an audit.

    Args:
      attacked: what was found in weights; None where none were given.
      counts: of it.
      copies: in a distilled set; None where none was given.
      training: what is known of it.

    Example:
      >>> from ntk_privacy.auditing import statement
      >>> statement.state(None, None, statement.Copies(10, 3)).sentence
      '3 of 10 distilled images are copies of private images.'
    """
    sentences: list[str] = []
    words: list[Word] = []
    told: dict[str, tuple[str, ...]] = {}
    if attacked is not None and counts is not None:
        sentence, word = _of_weights(attacked, counts)
        sentences, words, told = (
            [sentence],
            [word],
            _behind(attacked, training or KnownTraining()),
        )
    if copies is not None:
        sentence, word = _of_copies(copies)
        sentences.append(sentence)
        words.append(word)
        told["rests_on"] = (
            *told.get("rests_on", ()),
            "A distilled image is a copy where its PSNR to a private one is 25 dB or "
            "more.",
        )
        told["tried"] = (*told.get("tried", ()), "comparison of the distilled set")
        if copies.decoded is not None:
            told["rests_on"] += (_of_decoded(copies),)
            told["tried"] += ("an attack on a network that is trained on it",)
    order: tuple[Word, ...] = ("certain", "likely", "not attacked", "nothing found")
    worst = min(words, key=order.index)
    remedies = (_DISTILL, _NOISE)
    if worst in ("nothing found", "not attacked"):
        blind = attacked is not None and attacked.evidence.params_0 is None
        remedies = (_MORE, _AGAIN) if blind else (_AGAIN,)
    return Statement(
        sentence=" ".join(sentences), word=worst, remedies=remedies, **told
    )


def _of_decoded(copies: Copies) -> str:
    """What came back from a network; whether the attack worked is told first."""
    decoded = copies.decoded
    assert decoded is not None
    told = (
        f"From a network of width {distilled_sets.WIDTH} that is trained on the set, "
        f"{decoded.own} of its {copies.distilled} images come back at 25 dB, and "
        f"{decoded.originals} private ones"
    )
    if np.isfinite(decoded.best_psnr):
        told += f" (the nearest at {decoded.best_psnr:.1f} dB)"
    if not decoded.own:
        told += "; the attack found nothing of the set itself, so it shows nothing"
    return told + "."


def _of_copies(copies: Copies) -> tuple[str, Word]:
    beyond = copies.decoded.originals if copies.decoded is not None else 0
    if beyond > copies.copies:
        are = "image comes" if beyond == 1 else "images come"
        return (
            f"{beyond} private {are} back from a network that is trained on the "
            f"distilled set; {copies.copies} of {copies.distilled} distilled images "
            "are copies.",
            "likely",
        )
    if copies.copies:
        are = "is a copy" if copies.copies == 1 else "are copies"
        return (
            f"{copies.copies} of {copies.distilled} distilled images {are} of private "
            "images.",
            "certain",
        )
    return (
        f"None of {copies.distilled} distilled images is a copy of a private image: "
        f"{NOTHING}.",
        "nothing found",
    )


def _kind(evidence: Evidence) -> str:
    if evidence.is_adapter:
        return "this adapter"
    return "this gradient" if evidence.is_gradient else "these weights"


def _of_weights(attacked: Attacked, counts: Counts) -> tuple[str, Word]:
    what = _kind(attacked.evidence)
    if not attacked.tried:
        return (
            f"Nothing was tried on {what}: no attack here takes what was given, which "
            "says nothing of what they hold.",
            "not attacked",
        )
    if counts.private is not None and counts.recovered is not None:
        return _against_truth(counts, what)
    if counts.certified:
        known = counts.estimated is not None and counts.estimated >= counts.certified
        of = f" of {counts.estimated}" if known else ""
        more = counts.images - counts.certified
        rest = f" {more} more are estimates." if more else ""
        every = f"{counts.certified}{of} training images"
        return f"{every} can be computed from {what} with certainty.{rest}", "certain"
    if counts.images and attacked.found.verdict.word == "approximate":
        # A search returns more candidates than there are images.
        count = min(counts.images, counts.estimated or counts.images)
        are = "image was" if count == 1 else "images were"
        return (
            f"{count} {are} estimated from {what}; none is certain.",
            "likely",
        )
    return f"No image was computed from {what}: {NOTHING}.", "nothing found"


def _against_truth(counts: Counts, what: str) -> tuple[str, Word]:
    certain, recovered = counts.certain or 0, counts.recovered or 0
    others = counts.certified - certain
    more = ""
    if others:
        are = "image that is" if others == 1 else "images that are"
        more = f" {others} further {are} certain is not among those given."
        more = more if others == 1 else more.replace("is not", "are not")
    if recovered > counts.up_to_brightness or (recovered and certain):
        are = "is" if certain == 1 else "are"
        sure = f"{certain} {are} certain" if certain else "none is certain"
        return (
            f"{recovered} of {counts.private} training images can be computed from "
            f"{what}; {sure}.{more}",
            "certain" if certain or others else "likely",
        )
    if counts.up_to_brightness and not others:
        return (
            f"{counts.up_to_brightness} of {counts.private} training images can be "
            f"computed from {what} up to brightness and contrast; none is certain.",
            "likely",
        )
    if others:
        are = "image" if others == 1 else "images"
        but = f", but none of the {counts.private} given ones is among them."
        if counts.up_to_brightness:
            but = (
                f"; {counts.up_to_brightness} of the {counts.private} given ones match "
                "them up to brightness and contrast."
            )
        return (
            f"{others} {are} can be computed from {what} with certainty{but}",
            "certain",
        )
    return (
        f"None of the {counts.private} given images was computed from {what}: "
        f"{NOTHING}.",
        "nothing found",
    )


def _behind(attacked: Attacked, training: KnownTraining) -> dict[str, tuple[str, ...]]:
    """Returns what stands behind the sentence about weights."""
    evidence, verdict = attacked.evidence, attacked.found.verdict
    rests_on = [verdict.reason]
    if attacked.seed is not None and attacked.seed.seed is not None:
        found = attacked.seed
        rests_on.append(
            f"The weights before training are those of seed {found.seed}: a wrong one "
            f"of {found.num_seeds} would resemble them as much with a probability of "
            f"{found.p_value:.1g}."
        )
    assumed = ["Both files are of one network, before and after one training."]
    if evidence.is_gradient:
        assumed = ["The gradient was taken at the weights that were given."]
    elif evidence.params_0 is None:
        assumed = _of_max_margin(training)
    elif evidence.is_adapter:
        assumed = ["The adapter is of the first dense layer of this network."]
    plain = (
        "The first layer is dense with a ReLU behind it, the training images are fewer "
        "than its inputs and units, and each moved it by a multiple of itself: SGD of "
        "any kind, without Adam and without noise."
    )
    searched = any("kkt" in source for source in attacked.found.sources)
    supported, contradicted = (), _by_recipe(attacked, training)
    if verdict.word == "exact":
        supported = (plain,)
    elif verdict.word == "assumptions do not hold" and not searched:
        told = f"At least one of these does not hold. {plain}"
        contradicted = (told, *contradicted)
    elif evidence.is_gradient or not training.is_by_entry:
        assumed.append(plain)
    not_tried = (
        *attacked.left_out,
        "attacks on answers alone, without weights",
        "attacks by other images of the same people or things",
    )
    return {
        "rests_on": tuple(text for text in rests_on if text),
        "assumed": tuple(assumed),
        "supported": supported,
        "contradicted": contradicted,
        "tried": attacked.tried,
        "not_tried": not_tried,
    }


def _of_max_margin(training: KnownTraining) -> list[str]:
    if training.loss is None:
        return ["The training was by cross-entropy, from a tiny first layer."]
    return ["The training was long, from a tiny first layer."]


def _by_recipe(attacked: Attacked, training: KnownTraining) -> tuple[str, ...]:
    """Returns where the recipe and what is assumed, or shown, say different things."""
    evidence, found, told = attacked.evidence, attacked.found, []
    is_exact = found.verdict.word == "exact"
    if training.is_by_entry and not evidence.is_gradient:
        says = f"The recipe says optimizer={training.optimizer}"
        told.append(
            f"{says}, but certified images do explain the change, as after SGD: these "
            "are weights of another training, or the recipe is wrong."
            if is_exact
            else f"{says}, which scales every entry of a weight by itself: what exact "
            "attacks assume does not hold, and where they find nothing this says "
            "nothing of what the weights hold."
        )
    if evidence.params_0 is None and training.loss == "mse":
        told.append(
            "The recipe says loss=mse: a search near the margin assumes cross-entropy."
        )
    told_count, shown = training.num_images, found.estimated_num_images
    if told_count is not None and shown is not None and int(shown) != told_count:
        told.append(
            f"The recipe says num_images={told_count}: the weights show {int(shown)}."
        )
    return tuple(told)
