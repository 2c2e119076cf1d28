"""`python -m ript_ray` is `ript-ray`."""

from ript_ray.cli.main import main

if __name__ == "__main__":
    main()
