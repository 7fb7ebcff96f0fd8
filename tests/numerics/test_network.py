"""What is done to a network for speed: gradients stay as they are, names stay, less is kept."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from altdiffusion.diffusion import models
from altdiffusion.errors import AltDiffusionError
from altdiffusion.training.config import ComputeConfig
from altdiffusion.training.config.run import Precision
from altdiffusion.training.launch_local import run_local
from altdiffusion.training.model import prepare_network
from tests import training_lake
from tests.kept_for_backward import kept_for_backward, total_bytes
from tests.training_lake import Recorder

CPU = torch.device("cpu")
PLAIN = ComputeConfig(lean=False)


def inputs(batch: int = 3, side: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, side, side, generator=generator).to(dtype)
    return latents, torch.tensor([1, 500, 999]), torch.randn(batch, 8, 16, generator=generator).to(dtype)


def prepared(which: models.Trains, compute: ComputeConfig, precision: Precision = "fp32") -> tuple[Any, torch.dtype]:
    unet = training_lake.bundle().unet.train()
    models.trainable_parameters(unet, which)
    return unet, prepare_network(unet, precision=precision, compute=compute, device=CPU)


def kept(unet: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
    """Return loss, gradients by name, and the bytes that a forward pass keeps besides the weights."""
    latents, timesteps, context = inputs(dtype=next(unet.parameters()).dtype)
    with kept_for_backward(unet) as storages:
        loss = unet(latents, timesteps, encoder_hidden_states=context, return_dict=False)[0].float().square().mean()
    loss.backward()
    gradients = {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}
    return loss.detach(), gradients, total_bytes(storages)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("which", ["kv", "attn2"])
def test_activation_saving_convolutions_are_exact_and_keep_less(which: models.Trains, channels_last: bool) -> None:
    plain, _ = prepared(which, replace(PLAIN, channels_last=channels_last))
    saving, _ = prepared(which, ComputeConfig(channels_last=channels_last))
    assert list(plain.state_dict()) == list(saving.state_dict())
    (loss, gradients, much), (saving_loss, saving_gradients, less) = kept(plain), kept(saving)
    assert torch.equal(loss, saving_loss)
    assert gradients.keys() == saving_gradients.keys() == {n for n, p in plain.named_parameters() if p.requires_grad}
    assert all(torch.equal(gradients[name], saving_gradients[name]) for name in gradients)
    assert less < 0.9 * much


def test_divisions_by_one_are_left_out_and_nothing_changes() -> None:
    plain, _ = prepared("all", PLAIN)
    saving, _ = prepared("all", ComputeConfig())
    divisions = []
    for unet in (plain, saving):
        with torch.profiler.profile() as profile:
            kept(unet)
        divisions.append(sum(event.count for event in profile.key_averages() if event.key == "aten::div"))
    assert divisions[1] < divisions[0] - 10
    for (name, parameter), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None
        assert torch.equal(parameter.grad, other.grad), name


def test_convolutions_with_strides_and_groups_are_exact() -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(8, 8, 3, stride=2, padding=1), torch.nn.Conv2d(8, 8, (3, 1), groups=4, dilation=2)]
    network = torch.nn.Sequential(*layers, torch.nn.Conv2d(8, 2, 1, bias=False)).requires_grad_(False)
    saving = copy.deepcopy(network)
    from altdiffusion.training.model.activation_saving import keep_no_frozen_inputs

    assert keep_no_frozen_inputs(saving) == 3
    one, other = (torch.randn(2, 8, 13, 11, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    for sample, which in ((one, network), (other, saving)):
        which(sample.requires_grad_()).square().sum().backward()
    assert one.grad is not None and other.grad is not None
    assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_convolutions_that_keep_the_shape_are_exact_whatever_the_layout_of_the_gradient(
    kernel: int, channels_last: bool
) -> None:
    """Where the gradient has the shape of the input, it is given for it; its layout must not choose the kernel."""
    from altdiffusion.training.model.activation_saving import keep_no_frozen_inputs

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(32, 32, kernel, padding=kernel // 2)).requires_grad_(False)
    saving = copy.deepcopy(network)
    assert keep_no_frozen_inputs(saving) == 1
    one, other = (torch.randn(2, 32, 7, 7, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    weight = torch.randn(2, 7, 7, 32) if channels_last else torch.randn(2, 32, 7, 7)
    for sample, which in ((one, network), (other, saving)):
        found = which(sample.requires_grad_())
        ((found.permute(0, 2, 3, 1) if channels_last else found) * weight).sum().backward()
    assert one.grad is not None and other.grad is not None
    assert torch.equal(one.grad, other.grad)


def test_a_unit_scale_divides_and_does_nothing_else() -> None:
    from altdiffusion.training.model.activation_saving import _One

    tensor, one = torch.ones(3), _One()
    assert tensor / one is tensor  # type: ignore[operator]
    for wrong in (lambda: tensor * one, lambda: tensor + one, lambda: one / tensor, lambda: 1.0 / one):  # type: ignore[operator]
        with pytest.raises(TypeError):
            wrong()


def test_trained_convolutions_are_left_alone() -> None:
    whole, _ = prepared("all", ComputeConfig())
    assert {type(part) for part in whole.modules() if isinstance(part, torch.nn.Conv2d)} == {torch.nn.Conv2d}


def test_nothing_below_the_first_cross_attention_has_a_graph() -> None:
    """In K/V-only training: the first block whose keys and values are trained is where the graph begins."""
    unet, _ = prepared("kv", ComputeConfig())
    graph: list[tuple[str, bool]] = []
    for name, part in unet.named_modules():
        if not list(part.children()):
            part.register_forward_hook(lambda m, i, out, name=name: graph.append((name, out.requires_grad)))
    latents, timesteps, context = inputs()
    unet(latents, timesteps, encoder_hidden_states=context)
    first = next(number for number, (_, has) in enumerate(graph) if has)
    assert graph[first][0].endswith("attn2.to_k")
    below = {name for name, has in graph[:first] if not has}
    assert "conv_in" in below and any("down_blocks.0.resnets" in name for name in below)


@pytest.mark.parametrize("which", ["kv", "attn2", "all"])
def test_bf16_rounds_trained_weights_where_they_are_used(which: models.Trains) -> None:
    """Against autocast over float32 weights: the same to bf16's rounding; frozen weights take half the memory."""
    full, _ = prepared(which, PLAIN)
    original = {name: tensor.clone() for name, tensor in full.state_dict().items()}
    latents, timesteps, context = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        answer = full(latents, timesteps, encoder_hidden_states=context, return_dict=False)[0]
    answer.float().square().mean().backward()
    half, dtype = prepared(which, ComputeConfig(), "bf16")
    assert dtype == torch.bfloat16
    ours = half(latents.to(dtype), timesteps, encoder_hidden_states=context.to(dtype), return_dict=False)[0]
    assert ours.dtype == torch.bfloat16
    ours.float().square().mean().backward()
    torch.testing.assert_close(ours.float(), answer.float(), rtol=0.05, atol=0.05)
    for (name, parameter), mine in zip(full.named_parameters(), half.parameters(), strict=True):
        assert mine.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
        if parameter.grad is not None:
            assert mine.grad is not None and mine.grad.dtype == torch.float32
            scale = float(parameter.grad.abs().max())
            assert float((mine.grad - parameter.grad).abs().max()) < 0.05 * scale + 1e-4, name
    # What a checkpoint gets is the network in float32, to the last bit.
    state = half.state_dict()
    assert list(state) == list(original)
    assert all(torch.equal(state[name], tensor) for name, tensor in original.items())


def test_bf16_refuses_what_it_cannot_round() -> None:
    from altdiffusion.training.model.precision import to_bf16

    with pytest.raises(AltDiffusionError, match="Embedding"):
        to_bf16(torch.nn.Sequential(torch.nn.Embedding(3, 4)))


def test_a_checkpoint_of_a_bf16_run_keeps_frozen_weights_whole(pristine_lake: str, tmp_path: Any) -> None:
    import shutil

    lake = str(shutil.copytree(pristine_lake, tmp_path / "lake"))
    settings = training_lake.config(lake, trainable="kv", precision="bf16", steps=2)
    found = run_local(settings, lake, reporter=Recorder()).tensors("unet.safetensors")
    base = models.load_bundle(f"{lake}/models/base").unet.state_dict()
    changed = {name for name, tensor in base.items() if not torch.equal(tensor, found[name])}
    assert changed == {name for name in base if ".attn2.to_k." in name or ".attn2.to_v." in name}


def test_attention_backends_agree() -> None:
    answers = []
    for attention in ("sdpa", "eager"):
        unet, _ = prepared("all", ComputeConfig(attention=attention))
        latents, timesteps, context = inputs()
        answers.append(unet(latents, timesteps, encoder_hidden_states=context, return_dict=False)[0])
    assert not torch.equal(answers[0], answers[1])
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)


def test_missing_xformers_is_reported_with_a_remedy() -> None:
    with pytest.raises(AltDiffusionError, match="xformers") as caught:
        prepared("all", ComputeConfig(attention="xformers"))
    assert "sdpa" in caught.value.remedy


def test_graphs_without_a_compiler_are_refused() -> None:
    with pytest.raises(ValueError, match=r"cuda_graphs.*compile"):
        ComputeConfig(cuda_graphs=True)
    assert ComputeConfig(compile=True, cuda_graphs=True).cuda_graphs


@pytest.mark.parametrize(
    ("backend", "trainable"), [("aot_eager", "kv"), pytest.param("inductor", "all", marks=pytest.mark.slow)]
)
def test_a_compiled_network_is_the_same_network(monkeypatch: pytest.MonkeyPatch, backend: str, trainable: Any) -> None:
    """The graphs alone, forward and backward, and what Inductor makes of them with the C++ compiler (a minute)."""
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("no C++ compiler on this machine")
    own = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **options: own(self, backend=backend, **options))
    plain, _ = prepared(trainable, ComputeConfig())
    compiled, _ = prepared(trainable, ComputeConfig(compile=True))
    assert list(plain.state_dict()) == list(compiled.state_dict())
    (loss, gradients, _), (other, others, _) = kept(plain), kept(compiled)
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
