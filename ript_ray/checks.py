"""Range checks of settings; messages name the field, the value and the allowed range."""

from ript_ray.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def require_at_least(field: str, value: float, low: float) -> None:
    """Check low <= value < infinity; NaN fails."""
    require(value >= low, f"{field} must be at least {low}, not {value}")
    require(value < float("inf"), f"{field} must be finite, not {value}")


def require_between(field: str, value: float, low: float, high: float) -> None:
    """Check low <= value <= high; NaN fails."""
    require(low <= value <= high, f"{field} must be from {low} to {high}, not {value}")


def require_positive(field: str, value: float) -> None:
    """Check 0 < value < infinity; NaN fails."""
    require(0 < value < float("inf"), f"{field} must be above 0 and finite, not {value}")
