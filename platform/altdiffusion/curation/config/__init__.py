"""Settings of curation, one file per operator."""

from altdiffusion.curation.config.balance import BalanceConfig
from altdiffusion.curation.config.distinct import DistinctConfig
from altdiffusion.curation.config.download import DownloadConfig, RetryConfig
from altdiffusion.curation.config.encode import BucketsConfig, EncodeConfig, FilterConfig
from altdiffusion.curation.config.estimate import DownloadEstimateConfig
from altdiffusion.curation.config.language import THRESHOLDS, LanguageConfig
from altdiffusion.curation.config.own import OwnConfig
from altdiffusion.curation.config.parallel import CorpusConfig, IdsConfig, PairsConfig
from altdiffusion.curation.config.presets import PRESETS, Preset
from altdiffusion.curation.config.report import ReportConfig
from altdiffusion.curation.config.score import SCORE_NAMES, ClassifierConfig, HeadConfig, ScoreConfig, ScorerConfig
from altdiffusion.curation.config.select import SelectConfig
from altdiffusion.curation.config.source import SourceConfig
from altdiffusion.curation.config.store import StoreConfig

__all__ = [
    "PRESETS",
    "SCORE_NAMES",
    "THRESHOLDS",
    "BalanceConfig",
    "BucketsConfig",
    "ClassifierConfig",
    "CorpusConfig",
    "DistinctConfig",
    "DownloadConfig",
    "DownloadEstimateConfig",
    "EncodeConfig",
    "FilterConfig",
    "HeadConfig",
    "IdsConfig",
    "LanguageConfig",
    "OwnConfig",
    "PairsConfig",
    "Preset",
    "ReportConfig",
    "RetryConfig",
    "ScoreConfig",
    "ScorerConfig",
    "SelectConfig",
    "SourceConfig",
    "StoreConfig",
]
