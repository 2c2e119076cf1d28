import ript_ray  # noqa: F401  (first of all: it sets what must be set before torch is imported)
