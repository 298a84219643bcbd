"""Folders of data and model files that override those of the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fuxictr_mm.experiment import Experiment


@dataclass(frozen=True)
class Source:
    """Folders that replace those of a configuration, as of ``Experiment.load``."""

    data_root: Path | None = None  #: Replaces the dataset's ``data_root``.
    model_zoo: Path | None = None  #: A folder of model files to search first.

    @property
    def arguments(self) -> list[str]:
        """What is passed on to ``fuxictr-mm train``."""
        given = {"--data_root": self.data_root, "--model_zoo": self.model_zoo}
        return [text for flag, path in given.items() if path is not None for text in (flag, str(path))]

    def load(self, expid: str, config: Path) -> Experiment:
        """Read and check an experiment of a configuration folder."""
        from fuxictr_mm.experiment import Experiment  # which imports FuxiCTR

        return Experiment.load(expid, config, data_root=self.data_root, model_zoo=self.model_zoo)


#: The folders of the configuration itself.
AS_CONFIGURED = Source()
