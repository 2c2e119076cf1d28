"""Plot of the training curve."""

from collections.abc import Callable, Sequence
from pathlib import Path

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
