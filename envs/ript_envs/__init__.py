"""The benchmark environments. This package knows nothing of policies or learning."""
