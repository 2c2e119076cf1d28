"""The training curve as a picture."""

from collections.abc import Sequence
from pathlib import Path

from ript_ray.evaluation.evaluate import SuccessRate
from ript_ray.tracking.metrics_log import MetricPoint


def plot_curve(
    path: Path, points: Sequence[MetricPoint], *, before: SuccessRate, after: SuccessRate, title: str
) -> None:
    """Draw success against updates, environment steps and seconds.

    Args:
        path: Where the PNG goes.
        points: One per update, with `train/success_rate`.
        before: Held-out success before post-training.
        after: Held-out success after it.
        title: Heading of the picture.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    rates = [point.metrics["train/success_rate"] for point in points]
    columns = {
        "updates": [float(point.update) for point in points],
        "environment steps (thousands)": [point.env_steps / 1000 for point in points],
        "wall time (s)": [point.wall_s for point in points],
    }
    for axis, (label, values) in zip(axes, columns.items(), strict=True):
        axis.plot(values, rates, marker="o", markersize=3, color="tab:blue", label="training rollouts")
        if values:
            ends = (values[0], values[-1])
            for where, measured, colour in zip(ends, (before, after), ("tab:gray", "tab:green"), strict=True):
                spread = [[measured.success_rate - measured.low], [measured.high - measured.success_rate]]
                name = f"held out, {'before' if measured is before else 'after'}"
                axis.errorbar(where, measured.success_rate, spread, fmt="s", capsize=4, color=colour, label=name)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("success rate")
    axes[0].set_ylim(-0.02, 1.02)
    axes[0].legend(loc="lower right")
    figure.suptitle(title)
    figure.savefig(path, dpi=110)
