"""bf16 arithmetic: frozen weights stored in bf16, trained ones in float32 and rounded where they are used.

Under autocast every frozen weight would be float32 in memory and be rounded again in every forward pass. Here a module
whose own weights are frozen holds them in bf16, and a module with trained weights rounds those as it computes: the
gradient flows through the rounding to the float32 weight, which optimizer, averages and checkpoint see alone.

A checkpoint holds all of the network in float32. So the frozen weights' float32 values are kept in host memory, and
`state_dict` gives them: nothing is lost from stage to stage.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altdiffusion.errors import AltDiffusionError


class _CastLinear(nn.Linear):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), _cast(self.bias, input))


class _CastConv2d(nn.Conv2d):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight.to(input.dtype), _cast(self.bias, input))


class _CastGroupNorm(nn.GroupNorm):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, _cast(self.weight, input), _cast(self.bias, input), self.eps)


class _CastLayerNorm(nn.LayerNorm):  # type: ignore[misc]
    def forward(self, input: Tensor) -> Tensor:
        shape, weight, bias = list(self.normalized_shape), _cast(self.weight, input), _cast(self.bias, input)
        return F.layer_norm(input, shape, weight, bias, self.eps)


_CASTING: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _CastLinear,
    nn.Conv2d: _CastConv2d,
    nn.GroupNorm: _CastGroupNorm,
    nn.LayerNorm: _CastLayerNorm,
}


def _cast(parameter: Tensor | None, like: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(like.dtype)


def to_bf16(module: nn.Module) -> None:
    """Make a network compute in bf16 on bf16 inputs. Its parameters' `requires_grad` marks what is trained.

    Raises:
        AltDiffusionError: a trained weight is in a module of a kind that cannot round it.
    """
    frozen: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        own = dict(part.named_parameters(recurse=False))
        if any(parameter.requires_grad for parameter in own.values()):
            if type(part) not in _CASTING:
                raise AltDiffusionError(
                    f"module {name} ({type(part).__name__})", "cannot be trained in bf16", "use precision: fp32"
                )
            part.__class__ = _CASTING[type(part)]
        for key, parameter in own.items():
            if not parameter.requires_grad:
                if parameter.device.type != "meta":  # there only shapes matter
                    frozen[f"{name}.{key}" if name else key] = parameter.detach().to("cpu", torch.float32)
                parameter.data = parameter.data.to(torch.bfloat16)

    def whole(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
        state.update({prefix + name: tensor for name, tensor in frozen.items()})

    module.register_state_dict_post_hook(whole)
