"""Results as a short table of text: what results.json holds, for a terminal."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ntk_privacy.evaluation import defence, rates

__all__ = [
    "adversarial",
    "aligned",
    "distillation",
    "kernel",
    "limits",
    "reconstruction",
]

Results = Mapping[str, Any]
Rows = list[tuple[str, str]]

_SHORT = " (not reached what was asked)"


def aligned(rows: Sequence[tuple[str, str]]) -> str:
    """Returns a table of names and values.

    Args:
      rows: a name and its value each.

    Example:
      >>> from ntk_privacy.reports import summaries
      >>> print(summaries.aligned([("loss", "0.1"), ("test accuracy", "90%")]))
      loss           0.1
      test accuracy  90%
    """
    size = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{size}}  {value}" for name, value in rows)


def reconstruction(results: Results) -> str:
    """Returns what was read back from a network, and why that is the verdict.

    Args:
      results: of `experiments.reconstruct`, of earlier versions too.
    """
    verdict = results.get("verdict") or {"word": "none was given", "reason": ""}
    short = _SHORT if results.get("converged") is False else ""
    lost = [("search lost", "its loss became NaN: lower --learning_rate")]
    recovered = f"{results['num_recovered']} of {results['num_images']}"
    rows = [
        *(lost if results.get("nonfinite") else ()),
        ("verdict", verdict["word"]),
        ("images recovered (PSNR >= 25 dB)", recovered),
        *_decoded(results),
        ("training loss", f"{results['train_loss']:.2g}{short}"),
        ("test accuracy of the network", f"{100 * results['test_accuracy']:.1f}%"),
        ("kernel distance", f"{float(results['kernel_distance']):.2g}"),
        _spent(results, "train", "compile", "attack"),
    ]
    # In full, below the table: it is why the word was chosen.
    told = [verdict["reason"], *(f"warning: {w}" for w in results.get("warnings", ()))]
    wrapped = [part for text in told for part in textwrap.wrap(text, 79)]
    return "\n".join([aligned(rows), *wrapped])


def _decoded(results: Results) -> Rows:
    """Returns rows of decoding, ranking and distances, those that there are."""
    rows = []
    if "seed_found" in results:
        guess = results["seed_found"]
        told = f"{guess['best']} (p = {guess['p_value']:.2g})"
        name = "seed of the weights before training, as guessed"
        rows.append((name, "none" if guess["seed"] is None else told))
    if "num_certified" in results:
        count = results["estimated_num_images"]
        told = "unknown" if count is None else f"{count}"
        rows.append(("size of the training set, as read from the weights", told))
        rows.append(("images certified", str(results["num_certified"])))
    if "labels" in results:
        clear = sum(label is not None for label in results["labels"])
        told = f"{clear}, {results['num_labels_right']} of them right"
        rows.append(("labels, as read from the duals", told))
    if "ranking" in results:
        best = results["ranking"]["mean_ssim_best_10"]
        unseen = results["ranking"]["mean_ssim_best_10_of_unseen_images"]
        name = "mean SSIM of the best 10 (of unseen images)"
        rows.append((name, f"{best:.3f} ({unseen:.3f})"))
    squared = np.asarray(results["squared_distances"], float)
    if not len(squared):
        return [*rows, ("images found", "0")]
    ssim = np.mean(np.asarray(results["ssim"], float))
    return [
        *rows,
        ("median squared distance", f"{np.median(squared):.3g}"),
        ("largest squared distance", f"{squared.max():.3g}"),
        ("mean SSIM", f"{ssim:.3f}"),
    ]


def _spent(results: Results, *names: str) -> tuple[str, str]:
    spent = ", ".join(f"{results['seconds'][name]:.1f}" for name in names)
    return f"seconds: {', '.join(names)}", spent


def kernel(results: Results) -> str:
    """Returns the spectrum of a kernel, and how far it moved in training.

    Args:
      results: of `experiments.kernel`.
    """
    rows = [
        ("largest eigenvalue", f"{results['largest_eigenvalue']:.4g}"),
        ("smallest eigenvalue", f"{results['smallest_eigenvalue']:.4g}"),
        ("condition number", f"{float(results['condition_number']):.4g}"),
        ("effective rank", f"{results['effective_rank']:.4g}"),
        ("alignment with the targets", f"{results['target_alignment']:.4g}"),
    ]
    if "kernel_distance" in results:
        short = "" if results["converged"] else _SHORT
        rows += [
            ("training steps", str(results["train_steps"])),
            ("training loss", f"{results['train_loss']:.3g}{short}"),
            ("kernel distance after training", f"{results['kernel_distance']:.4g}"),
        ]
    return aligned([*rows, _spent(results, "compile", "kernel", "train")])


def distillation(results: Results) -> str:
    """Returns what a distilled set is worth, and what it hides.

    Args:
      results: of `experiments.distill` with any method.
    """
    if "judging" in results:
        rows = _of_soft_labels(results)
    else:
        rows = _of_task(results) if "task" in results else _of_classes(results)
    spent = [f"{name} {s:.1f}" for name, s in results["seconds"].items() if s]
    return aligned([*rows, ("seconds", ", ".join(spent))])


def _of_soft_labels(results: Results) -> Rows:
    judged = f"{results['num_test']} {results['judging']['judged_on']} images"
    shares = {"squeezed network, clean": results["accuracy_squeezed"]}
    shares |= {f"student, {k}": v for k, v in results.get("accuracy", {}).items()}
    top = results.get("top_hessian_eigenvalue", {})
    return [
        ("judged on", judged),
        *((name, f"{100 * share:.2f}%") for name, share in shares.items()),
        *((f"top eigenvalue, {name}", f"{value:.3g}") for name, value in top.items()),
    ]


def _of_task(results: Results) -> Rows:
    rows = []
    if results["loss"] is not None:
        rows.append(("loss", f"{results['loss']:.3g}"))
    for kind in ("infinite", "linearized", "standard"):
        if results.get("accuracy", {}).get(kind) is not None:
            runs = [told["accuracy"] for told in results["runs"][kind]]
            told = rates.in_percent(runs, digits=2)
            rows.append((f"test accuracy, {kind}", f"{told}%"))
    rows += _copies(results)
    for name in defence.ATTACKS if "attack" in results else ():
        count = results["attack"][name]["num_recovered"]
        rows.append((f"original images recovered, {name}", f"{count}"))
    return rows


def _of_classes(results: Results) -> Rows:
    rows = [("loss, mean of the last 50 steps", f"{results['loss']:.3g}")]
    named = {"condensed": "", "random": ", random real images"}
    for name, told in named.items() if "accuracy" in results else ():
        value = rates.in_percent(results["runs"][name], digits=2)
        rows.append((f"test accuracy{told}", f"{value}%"))
    if results.get("step_size_fault"):
        rows.append(("step size", results["step_size_fault"]))
    return rows + _copies(results)


def _copies(results: Results) -> Rows:
    if "nearest" not in results:  # of earlier versions
        return []
    count = f"{results['nearest']['num_copies']} of {results['num_distilled']}"
    return [("copies of training images (PSNR >= 25 dB)", count)]


def adversarial(results: Results) -> str:
    """Returns what attacks left of a model's accuracy.

    Args:
      results: `figures` and `settings` of `evaluation.attacked_set`, as stored.
    """
    share = results["accuracy"]
    rows = [("attack", "accuracy %", "queries", "seconds")]
    rows.append(("none", f"{100 * share['clean']:.2f}", "", ""))
    for name in results["settings"]:
        spent = results["seconds"]["attacks"][name]
        queries = f"{results['queries'][name]:.0f}"
        # Older results do not have it.
        called = results.get("names", {}).get(name, name)
        rows.append((called, f"{100 * share[name]:.2f}", queries, f"{spent:.1f}"))
        for part, left in results["left"].get(name, {}).items():
            rows.append((f"  after {part}", f"{100 * left:.2f}", "", ""))
    rows.append(("all within eps", f"{100 * share['ensemble']:.2f}", "", ""))
    told = [(name, f"{b:>10}  {c:>8}  {d:>8}".rstrip()) for name, b, c, d in rows]
    warned = (f"warning: {text}" for text in results["warnings"])
    return "\n".join([aligned(told), *warned])


def limits(row: Results) -> str:
    """Returns a line of a limits study.

    Args:
      row: of the table, without an error.
    """
    certified = row["num_certified"]
    told = "" if certified is None else f", {certified} certified"
    stop = "" if row["early_stop_loss"] is None else ", early stopped"
    verdict = row.get("verdict")
    judged = "" if verdict is None else f"; {verdict['word']}: {verdict['reason']}"
    return (
        f"{row['dataset']} {row['task']} {row['dynamics']}{stop}: "
        f"N={row['num_images']} "
        f"width={row['width']}: {row['num_recovered']} recovered{told}, kernel "
        f"distance {float(row['kernel_distance']):.2g}{judged}"
    )
