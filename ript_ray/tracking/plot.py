"""Plot of the training curve."""

from collections.abc import Sequence
from pathlib import Path

from ript_ray.evaluation.evaluate import SuccessRate
from ript_ray.tracking.metrics_log import MetricPoint


def plot_curve(
    path: Path, points: Sequence[MetricPoint], *, before: SuccessRate, after: SuccessRate, title: str
) -> None:
    """Plot success rate against updates, environment steps and wall time.

    Args:
        path: PNG file to write.
        points: Points of the run; those of kind "update" are plotted.
        before: Held-out success before post-training.
        after: Held-out success after it.
        title: Title of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    updates = [point for point in points if point.kind == "update"]
    rates = [point.metrics["train/success_rate"] for point in updates]
    columns = {
        "updates": [float(point.update) for point in updates],
        "environment steps (thousands)": [point.env_steps / 1000 for point in updates],
        "wall time (s)": [point.wall_s for point in updates],
    }
    for axis, (label, values) in zip(axes, columns.items(), strict=True):
        axis.plot(values, rates, marker="o", markersize=3, color="tab:blue", label="training rollouts")
        if values:
            ends = (values[0], values[-1])
            for x, rate, color in zip(ends, (before, after), ("tab:gray", "tab:green"), strict=True):
                interval = [[rate.success_rate - rate.low], [rate.high - rate.success_rate]]
                name = f"held out, {'before' if rate is before else 'after'}"
                axis.errorbar(x, rate.success_rate, interval, fmt="s", capsize=4, color=color, label=name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("success rate")
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
