"""What a reconstruction tells the terminal."""

import textwrap
from typing import Any

import numpy as np

from experiments import _run


def summary(results: dict[str, Any]) -> str:
    """Returns a short table for the terminal.

    Args:
      results: of a run, of earlier versions too.
    """
    verdict = results.get("verdict") or {"word": "none was given", "reason": ""}
    short = " (not reached what was asked)" if results.get("converged") is False else ""
    lost = [("search lost", "its loss became NaN: lower --learning_rate")]
    recovered = f"{results['num_recovered']} of {results['num_images']}"
    spent = [f"{results['seconds'][k]:.1f}" for k in ("train", "compile", "attack")]
    rows = [
        *(lost if results.get("nonfinite") else ()),
        ("verdict", verdict["word"]),
        ("images recovered (PSNR >= 25 dB)", recovered),
        *_own_rows(results),
        ("training loss", f"{results['train_loss']:.2g}{short}"),
        ("test accuracy of the network", f"{100 * results['test_accuracy']:.1f}%"),
        ("kernel distance", f"{float(results['kernel_distance']):.2g}"),
        ("seconds: train, compile, attack", ", ".join(spent)),
    ]
    # In full, below the table: it is why the word was chosen.
    told = [verdict["reason"], *(f"warning: {w}" for w in results.get("warnings", ()))]
    wrapped = [part for text in told for part in textwrap.wrap(text, 79)]
    return "\n".join([_run.table(rows), *wrapped])


def _own_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns rows of decoding, ranking and distances, those that there are."""
    rows = []
    if "num_certified" in results:
        count = results["estimated_num_images"]
        told = "unknown" if count is None else f"{count}"
        rows += [
            ("size of the training set, as read from the weights", told),
            ("images certified", str(results["num_certified"])),
        ]
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
