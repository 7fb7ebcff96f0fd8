"""Where the time of a step goes: PyTorch's profiler over some steps of ours, by kind of operation and by network."""

from __future__ import annotations

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.training import Contender

STEPS = 5
KINDS = {
    "matrix products (linear layers)": ("aten::addmm", "aten::mm", "aten::bmm", "aten::baddbmm"),
    "convolutions, by oneDNN": (
        "aten::mkldnn_convolution", "aten::mkldnn_convolution_backward", "aten::convolution_backward",
    ),
    "1 x 1 convolutions, without oneDNN": ("aten::_slow_conv2d_forward", "aten::_slow_conv2d_backward"),
    "convolutions, by cuDNN": ("aten::cudnn_convolution",),
    "fused attention": (
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        "aten::_flash_attention_forward", "aten::_flash_attention_backward",
        "aten::_efficient_attention_forward", "aten::_efficient_attention_backward",
    ),
    "norms": (
        "aten::native_group_norm", "aten::native_group_norm_backward",
        "aten::native_layer_norm", "aten::native_layer_norm_backward",
    ),
    "GEGLU and SiLU": ("aten::gelu", "aten::gelu_backward", "aten::silu", "aten::silu_backward"),
    "sums, products, copies, concatenations": (
        "aten::add", "aten::add_", "aten::mul", "aten::mul_", "aten::copy_", "aten::cat", "aten::clone", "aten::sum",
        "aten::fill_", "aten::zero_", "aten::index", "aten::upsample_nearest2d", "aten::upsample_nearest2d_backward",
    ),
    "AdamW, averages, the gradient's norm": (
        "aten::_fused_adamw_", "aten::_foreach_lerp_", "aten::_foreach_norm", "aten::_foreach_mul_",
    ),
}  # fmt: skip
NETWORKS = ("text encoder", "UNet, forward")


def _named(call: Any, name: str) -> Any:
    def named(*arguments: Any, **options: Any) -> Any:
        with record_function(name):
            return call(*arguments, **options)

    return named


def print_profile(contender: Contender, device: torch.device) -> None:
    """Print the shares of a step of ours; the loop itself and what no line names are in the last line."""
    task = contender.keep[0].task
    task.encode, task.unet.forward = _named(task.encode, NETWORKS[0]), _named(task.unet.forward, NETWORKS[1])
    for _ in range(2):
        contender.step()
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        for _ in range(STEPS):
            with record_function("step"):
                contender.step()
    own, whole = (
        ("self_device_time_total", "device_time_total") if on_gpu else ("self_cpu_time_total", "cpu_time_total")
    )
    events = {event.key: event for event in found.key_averages()}
    spent = {key: getattr(event, own) for key, event in events.items()}
    total = sum(spent.values())
    print(f"a step under the profiler: {total / STEPS / 1000:.0f} ms")
    named = {title: sum(spent.get(key, 0.0) for key in keys) for title, keys in KINDS.items()}
    for title, share in sorted(named.items(), key=lambda item: -item[1]):
        if share:
            print(f"{title:45}{share / total:>7.1%}")
    print(f"{'all else: Python, autograd, calls':45}{1 - sum(named.values()) / total:>7.1%}")
    shares = {name: getattr(events[name], whole) / total for name in NETWORKS}
    for name, share in shares.items():
        print(f"{name:45}{share:>7.1%}")
    print(f"{'backward, and the update':45}{1 - sum(shares.values()):>7.1%}")
