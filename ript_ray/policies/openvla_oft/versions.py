"""The library versions that this model was compared with the authors' outputs on.

transformers' masks and caches and peft's matching of modules change between releases, and what goes wrong then is
silent: with causal attention the policy still acts, and succeeds in half of the episodes. Other versions are refused.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from ript_ray.errors import RiptError

TESTED = {"transformers": "==5.23.*", "peft": "==0.21.*"}
"""The versions, as in the extra `openvla` of `pyproject.toml`: before changing one, run the parity tests."""


def require_versions(allowed: Mapping[str, str] = TESTED) -> None:
    """Check the versions of the libraries that the model is built from.

    Args:
        allowed: By package, a version specifier.

    Raises:
        RiptError: One is missing, or of a version that was not tested.
    """
    for package, versions in allowed.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            found = "not installed"
        if found == "not installed" or found not in SpecifierSet(versions):
            raise RiptError(
                f"OpenVLA-OFT needs {package}{versions}, but it is {found}: with another version the policy may act "
                'worse without an error. Install what was tested: pip install "ript-ray[openvla]"'
            )
