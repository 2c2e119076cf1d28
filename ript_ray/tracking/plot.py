"""Plots of training curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import t

from ript_ray.evaluation.evaluate import SuccessRate
from ript_ray.tracking.metrics_log import MetricPoint


def plot_curve(
    path: Path, points: Sequence[MetricPoint], *, before: SuccessRate, after: SuccessRate, title: str
) -> None:
    """Plot success rate against updates, environment steps and wall time.

    Args:
        path: PNG file to write.
        points: Points of the run; those of kinds "update" and "validation" are plotted.
        before: Held-out success before post-training.
        after: Held-out success after it.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    updates = [point for point in points if point.kind == "update"]
    rates = [point.metrics["train/success_rate"] for point in updates]
    validated = [point for point in points if point.kind == "validation"]
    validation_rates = [point.metrics["validation/success_rate"] for point in validated]
    columns: dict[str, Callable[[MetricPoint], float]] = {
        "updates": lambda point: point.update,
        "environment steps (thousands)": lambda point: point.env_steps / 1000,
        "wall time (s)": lambda point: point.wall_s,
    }
    for axis, (label, position) in zip(axes, columns.items(), strict=True):
        values = [position(point) for point in updates]
        axis.plot(values, rates, marker="o", markersize=3, color="tab:blue", label="training rollouts")
        if validated:
            at = [position(point) for point in validated]
            axis.plot(at, validation_rates, marker=".", color="tab:orange", label="validation contexts")
            best = validation_rates.index(max(validation_rates))
            axis.plot(at[best], validation_rates[best], "*", markersize=12, color="tab:orange", label="best checkpoint")
        if values:
            ends = (values[0], values[-1])
            for x, rate, color in zip(ends, (before, after), ("tab:gray", "tab:green"), strict=True):
                interval = [[rate.success_rate - rate.low], [rate.high - rate.success_rate]]
                name = f"test contexts, {'before' if rate is before else 'after'}"
                axis.errorbar(x, rate.success_rate, interval, fmt="s", capsize=4, color=color, label=name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("success rate")
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def plot_stage(path: Path, points: Sequence[MetricPoint], *, stage: str, title: str, unit: str) -> None:
    """Plot loss and errors of a supervised stage against its optimizer steps.

    Args:
        path: PNG file to write.
        points: Points of the run; those of the stage are plotted.
        stage: Name of the stage.
        title: Title of the figure.
        unit: Unit of the errors.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axis = figure.subplots()
    own = [point for point in points if point.stage == stage and point.kind == "stage"]
    for name, label, style in (
        ("loss", "loss (mean since the last point)", "-"),
        ("training_error", f"training windows, {unit}", "s"),
        ("held_out_error", f"held-out windows, {unit}", "o--"),
    ):
        values = [
            (point.update, point.metrics[f"{stage}/{name}"]) for point in own if f"{stage}/{name}" in point.metrics
        ]
        if values:
            axis.plot(*zip(*values, strict=True), style, label=label)
    axis.set_xlabel("optimizer steps")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def plot_settings(path: Path, settings: Mapping[str, Sequence[Mapping[int, float]]], *, title: str) -> None:
    """Plot success of the training rollouts against updates: a mean curve with its 95 % interval per setting.

    Args:
        path: PNG file to write.
        settings: By name: of each seed, success by update. Where a seed has not got as far as the others, its own thin
            curve ends, and the mean with it: a mean of those that were left would be of other seeds.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for number, (name, curves) in enumerate(settings.items()):
        color = f"C{number}"
        for curve in curves:
            axis.plot(*zip(*sorted(curve.items()), strict=True), color=color, linewidth=0.6, alpha=0.5)
        updates = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
        if not updates:
            continue
        rates_SU = np.array([[curve[update] for update in updates] for curve in curves])
        mean_U = rates_SU.mean(0)
        axis.plot(updates, mean_U, color=color, linewidth=2, label=f"{name} (seeds: {len(curves)})")
        if len(curves) > 1:
            half_U = t.ppf(0.975, len(curves) - 1) * rates_SU.std(0, ddof=1) / math.sqrt(len(curves))
            band = (np.clip(mean_U - half_U, 0, 1), np.clip(mean_U + half_U, 0, 1))
            axis.fill_between(updates, *band, color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("updates")
    axis.set_ylabel("success rate of training rollouts")
    axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
