"""The options of `ript-ray embed-text`; `ript_ray.policies.clip` does the work."""

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ript_ray.cli.entrypoint import begin_loading


@dataclass(frozen=True)
class EmbedText:
    """Write the text features (CLIP ViT-B/32) that the published LIBERO policies read of their instructions.

    An experiment whose policy reads them (--policy.task-input features) looks for them in the same file, and so may
    `ript-ray import --text-features FILE`. What the file has already is kept and not computed again.

    Attributes:
        instructions: The instructions; those of LIBERO's 130 tasks unless given.
        out: The safetensors file; the one of this user's cache, where experiments look, unless given.
        encoder: The language model: its name on the hub, or a folder with its files. Source: QueST,
            openai/clip-vit-base-patch32.
        download: Download the language model (0.6 GB) if it is not on this machine.
    """

    instructions: tuple[str, ...] = ()
    out: Path | None = None
    encoder: str = "openai/clip-vit-base-patch32"
    download: bool = False

    def run(self) -> int:
        """Embed, and print where the features are."""
        begin_loading()
        from ript_envs.libero.benchmark import Libero, Suite
        from ript_ray.policies.clip import features_file, text_features

        texts = self.instructions
        if not texts:
            suites = [Libero(suite=suite) for suite in get_args(Suite)]
            texts = tuple(dict.fromkeys(suite.instruction(task) for suite in suites for task in suite.tasks))
        path = self.out or features_file()
        found = text_features(texts, path, encoder=self.encoder, download=self.download)
        print(f"{path}: text features of {len(found)} instructions")
        return 0
