"""Settings of curation, one file an operator."""

from altdiffusion.curation.config.download import DownloadConfig
from altdiffusion.curation.config.encode import EncodeConfig
from altdiffusion.curation.config.language import THRESHOLDS, LanguageConfig
from altdiffusion.curation.config.score import ScoreConfig
from altdiffusion.curation.config.select import SelectConfig
from altdiffusion.curation.config.source import Preset, SourceConfig

__all__ = [
    "THRESHOLDS",
    "DownloadConfig",
    "EncodeConfig",
    "LanguageConfig",
    "Preset",
    "ScoreConfig",
    "SelectConfig",
    "SourceConfig",
]
