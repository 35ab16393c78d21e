"""The summary of metrics.json that train_adapter.py prints."""

from __future__ import annotations

import numpy as np

SHOWN_SETTINGS = ("alpha", "beta", "lambda", "epoch")
MIN_WEIGHT_SHOWN = 1e-6  # experts with smaller weights are not listed


def summary(results: dict) -> list[str]:
    """Return the lines of the summary: accuracies, and the chosen settings."""
    chosen, lines = results["chosen"], []
    if "val" in results:
        lines += _validation(results)
    elif "top1" in chosen:
        lines.append(
            f"shots left out in turn: zero-shot top-1 {chosen['zero_shot_top1']:.1%}, "
            f"{results['method']} {chosen['top1']:.1%} of {chosen['rows']}"
        )
    if "new_top1" in chosen:
        lines.append(
            f"shots of some classes hidden in turn: top-1 {chosen['base_top1']:.1%} on the others, "
            f"{chosen['new_top1']:.1%} on them"
        )
    if "seeds" in results:
        top1, top5 = ([100 * draw[key] for draw in results["seeds"]] for key in ("top1", "top5"))
        lines.append(
            f"{len(top1)} draws of shots: top-1 {np.mean(top1):.2f} ± {np.std(top1):.2f} %, top-5 "
            f"{np.mean(top5):.2f} ± {np.std(top5):.2f} %"
        )
    if choices := _choices(chosen):
        lines.append(f"chosen {chosen['how']}: {', '.join(choices)}")
    return lines


def _validation(results: dict) -> list[str]:
    """Return a table of the method and the baselines on the validation rows, as lines."""
    val = results["val"]
    refit = "   (before they were learned from)" if results.get("refit") else ""
    head = f"{val['n']} validation rows, on which choices were made:  top-1   top-5   calibration error{refit}"
    return [head] + [
        f"  {name:10} {score['top1']:39.1%} {score['top5']:7.1%} {score['calibration_error']:10.1%}"
        for name, score in {**val["beside"], results["method"]: val}.items()
    ]


def _choices(chosen: dict) -> list[str]:
    """Return a short text for each chosen setting."""
    texts = [f"{name} {chosen[name]:.4g}" for name in SHOWN_SETTINGS if name in chosen]
    texts += [
        f"{weight:.3g} x {name}" for name, weight in chosen.get("weights", {}).items() if weight > MIN_WEIGHT_SHOWN
    ]
    if "alike" in chosen:
        texts.append(
            f"{chosen['alike']} of {chosen['classes_without_shots']} classes without shots are of a known kind"
        )
    return texts
