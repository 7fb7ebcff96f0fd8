"""The config of a training run: what decides the weights, and what decides only where and how fast."""

from altdiffusion.training.config.compute import ComputeConfig
from altdiffusion.training.config.distillation import DistillationConfig
from altdiffusion.training.config.guards import GuardsConfig, SpikeConfig
from altdiffusion.training.config.lora import LoraConfig
from altdiffusion.training.config.objective import ObjectiveConfig
from altdiffusion.training.config.online import OnlineConfig
from altdiffusion.training.config.optimizer import OptimizerConfig
from altdiffusion.training.config.order import DatasetConfig, OrderConfig
from altdiffusion.training.config.run import Precision, Stage, Trainable, TrainConfig
from altdiffusion.training.config.start import StartConfig
from altdiffusion.training.config.validation import ValidationConfig
from altdiffusion.training.config.workers import WorkersConfig

__all__ = [
    "ComputeConfig",
    "DatasetConfig",
    "DistillationConfig",
    "GuardsConfig",
    "LoraConfig",
    "ObjectiveConfig",
    "OnlineConfig",
    "OptimizerConfig",
    "OrderConfig",
    "Precision",
    "SpikeConfig",
    "Stage",
    "StartConfig",
    "TrainConfig",
    "Trainable",
    "ValidationConfig",
    "WorkersConfig",
]
