"""The library versions that this model was compared with the authors' outputs on.

transformers' masks and caches and peft's matching of modules change between releases, and what goes wrong then is
silent: with causal attention the policy still acts, and succeeds in half of the episodes. Other versions are refused.
"""

from collections.abc import Mapping
from importlib.metadata import version

from packaging.specifiers import SpecifierSet

from ript_envs.contract import require_package
from ript_ray.errors import RiptError

TESTED = {"transformers": "==5.23.*", "peft": "==0.21.*"}
"""The versions, as in the extra `openvla` of `pyproject.toml`: before changing one, run the parity tests."""

EXTRA = ("transformers", "peft", "simplejpeg", "tokenizers")
"""All that the extra brings."""


def require_versions(allowed: Mapping[str, str] = TESTED) -> None:
    """Check that the libraries that the model is built from are there, and their versions.

    Args:
        allowed: By package, a version specifier.

    Raises:
        MissingPackageError: One is not installed.
        RiptError: One is of a version that was not tested.
    """
    for package in EXTRA:
        require_package(package, extra="openvla")
    for package, versions in allowed.items():
        found = version(package)
        if found not in SpecifierSet(versions):
            raise RiptError(
                f"OpenVLA-OFT needs {package}{versions}, but it is {found}: with another version the policy may act "
                "worse without an error. Install what was tested: pip install 'ript-ray[openvla]'"
            )
