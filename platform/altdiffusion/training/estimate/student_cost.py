"""What a run of the distillation stage will cost: counted like the others (training.estimate.cost).

Where the folders cannot be read, the published shapes are taken: XLM-R large, OpenCLIP ViT-H-14's text tower
(`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`) and Stable Diffusion 2.1's UNet and encoder, which is that tower without its
last layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from altdiffusion.diffusion.models import build_english_text_encoder, build_unet, text_config_m18
from altdiffusion.diffusion.quiet import quiet_libraries
from altdiffusion.diffusion.readout import ReadOut
from altdiffusion.diffusion.student import Student
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.estimate.cost import Cost, Shapes, kept_by, vae_parameters
from altdiffusion.training.update.optimizers import state_bytes

TOWER: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
    "projection_dim": 1024,
}


def estimate_student(config: TrainConfig, shapes: Shapes) -> Cost:
    """Return the counts of a run of the distillation stage: the student, its frozen teachers and the UNet's
    cross-attention."""
    assert config.distillation is not None
    quiet_libraries()
    settings, half = config.distillation, config.precision == "bf16"
    context = int(shapes.unet["cross_attention_dim"])
    shape = text_config_m18()
    if shapes.text == shape:  # nothing is known: XLM-R large, which has one layer more than the UNet's encoder
        shape = shape | {"num_hidden_layers": 24}
    shape |= {name: value for name, value in shapes.text.items() if name in shape and shapes.text != text_config_m18()}
    shape |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "project_dim": context}
    two_heads = settings.teacher is not None
    student = Student(shape, context if two_heads else None, "meta")
    readout = ReadOut(build_unet(shapes.unet, "meta"))
    english = build_english_text_encoder(TOWER | {"num_hidden_layers": 23}, "meta")
    frozen = [english, *([readout] if settings.token_weight and settings.token_term == "readout" else [])]
    if two_heads:
        frozen.append(build_english_text_encoder(TOWER, "meta"))
    trained, still = _count(student), sum(_count(network) for network in frozen)
    moments = state_bytes(config.optimizer, [parameter.numel() for parameter in student.parameters()])
    if half:
        student, readout = student.to(torch.bfloat16), readout.to(torch.bfloat16)
    ids = torch.zeros(config.micro_batch, shapes.tokens, dtype=torch.int64, device="meta")

    def forward() -> list[Tensor]:
        feature, read = student(ids)
        draw = torch.empty(settings.queries, readout.numbers, dtype=read.dtype, device="meta")
        return [feature, *(readout.answers(draw, read) if readout in frozen else [read])]

    return Cost(
        parameters=trained,
        trained=trained,
        weights=(4 + (2 if half else 0)) * (trained + still),
        training_state=(4 + 4) * trained + moments,
        activations=kept_by(torch.nn.ModuleList([student, readout]), forward),
        checkpoint=(4 + 4) * trained + moments,
        export=4 * (trained + vae_parameters(shapes.vae) + _count(build_unet(shapes.unet, "meta"))),
    )


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
