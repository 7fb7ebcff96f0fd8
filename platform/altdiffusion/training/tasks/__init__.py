"""What a stage trains: its networks and its loss. The trainer knows this protocol and no network."""

from altdiffusion.training.tasks.diffusion import DiffusionTask
from altdiffusion.training.tasks.distillation import DistillationTask
from altdiffusion.training.tasks.task import Task

__all__ = ["DiffusionTask", "DistillationTask", "Task"]
