"""LIBERO: one distribution, its assets, and the file of its paths."""

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from ript_ray.cli.doctor.finding import Finding


def libero() -> Iterator[Finding]:
    """Check which distribution is installed, and that its assets and configured paths are there."""
    from ript_envs.libero.installation import assets_folder, config_file
    from ript_envs.libero.suites import DISTRIBUTIONS, INSTALL, LiberoMissingError

    installed = [f"{each.name} {each.version}" for each in metadata.distributions() if each.name in DISTRIBUTIONS]
    problem = f"uninstall them, they overwrite each other; then {INSTALL}" if len(installed) > 1 else ""
    found = ", ".join(installed) or "not installed"
    try:
        found += f", assets in {assets_folder()}"
    except LiberoMissingError as error:
        problem = problem or str(error)
    yield Finding("LIBERO", found, good=not problem, fix=problem)
    if installed and config_file().exists():
        yield configuration(config_file())


def configuration(file: Path) -> Finding:
    """Check the paths in LIBERO's own file, which it asks for at its first import; the data sets may be missing."""
    import yaml

    fix = f"correct it, or delete it: without it ript-ray names the paths itself ({file})"
    try:
        paths = yaml.safe_load(file.read_text())
        missing = [f"{name}: {path}" for name, path in paths.items() if name != "datasets" and not Path(path).exists()]
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        return Finding("LIBERO's configuration", f"{file} cannot be read: {error}", good=False, fix=fix)
    found = f"there is no {', '.join(missing)}" if missing else str(file)
    return Finding("LIBERO's configuration", found, good=not missing, fix=fix)
