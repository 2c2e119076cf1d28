"""`python -m ript_ray` is `ript-ray`; where a package is missing that the command itself needs, the doctor answers."""

import sys


def main() -> None:
    """Run the command, or say what is missing."""
    try:
        from ript_ray.cli.main import main as run
    except ModuleNotFoundError as error:
        from ript_ray.cli.doctor import Doctor
        from ript_ray.cli.output import output_written

        print(f"error: {error}", file=sys.stderr)
        with output_written():
            Doctor(json="--json" in sys.argv).run()
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
