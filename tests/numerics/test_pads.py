"""One pad per caption: the vectors, the loss and the gradients are those of all pads, and less is computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from altdiffusion.diffusion import models
from altdiffusion.diffusion.text_encoder import columns_used, encode_text, has_one_pad, tokenize
from altdiffusion.training.config import TrainConfig
from altdiffusion.training.data.loader import Samples
from altdiffusion.training.tasks.diffusion import DiffusionTask
from tests import training_lake

PAD, TOKENS = 1, 40
CAPTIONS = ["cat", "ox", "dog", ""]


def bundle() -> models.ModelBundle:
    """Return the test models with room for more than a caption."""
    made = training_lake.bundle()
    torch.manual_seed(1)
    config = {**made.text_encoder.config.to_dict(), "max_position_embeddings": TOKENS + 2}
    made.tokenizer.model_max_length = TOKENS
    return dataclasses.replace(made, text_encoder=models.build_text_encoder(config))


def settings(**changes: Any) -> TrainConfig:
    changes = {"trainable": "kv", "caption_drop": 0.3, **changes}
    return training_lake.config("none", global_batch=4, micro_batch=4, **changes)


def samples(tokenizer: Any) -> Samples:
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3)).half()
    ids = tokenize(tokenizer, CAPTIONS).to(torch.int32)
    return Samples(step=0, positions=torch.arange(4), tensors={"latents": latents, "token_ids": ids})


def test_all_pads_of_a_caption_have_one_vector_and_few_columns_give_it() -> None:
    parts = bundle()
    ids = tokenize(parts.tokenizer, CAPTIONS)
    columns = columns_used(ids, PAD)
    assert has_one_pad(parts.text_encoder) and columns == 8 < ids.shape[1]
    with torch.no_grad():
        whole, few = (encode_text(parts.text_encoder, given, PAD) for given in (ids, ids[:, :columns]))
    torch.testing.assert_close(few, whole[:, :columns], rtol=1e-5, atol=1e-6)
    pads = whole[:, columns - 1 :]
    torch.testing.assert_close(pads, pads[:, :1].expand_as(pads), rtol=1e-5, atol=1e-6)
    assert float((whole[:, 1] - pads[:, 0]).abs().max()) > 1e-2  # a token is something else


def test_the_columns_hold_every_caption_and_a_pad() -> None:
    ids = torch.full((2, 32), PAD)
    assert columns_used(ids, PAD) == 8
    for length, columns in ((7, 8), (8, 16), (15, 16), (16, 24), (31, 32), (32, 32)):
        ids[1, :length] = 5
        assert columns_used(ids, PAD) == columns
    left = torch.full((2, 32), PAD)
    left[0, -3:] = 5
    assert columns_used(left, PAD) == 32
    assert columns_used(torch.full((2, 5), 7), PAD) == 5


def test_an_encoder_whose_pads_differ_is_read_whole() -> None:
    english = training_lake.english_bundle()
    assert not has_one_pad(english.text_encoder)  # CLIP's positions are those of the columns
    unmasked = bundle().text_encoder
    unmasked.config.use_attention_mask = False
    assert not has_one_pad(unmasked)  # every pad would count for every token


def losses(which: models.Trains, lora: bool, once: bool, cached: bool = False) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the loss and the gradients by name."""
    parts = bundle()
    config = settings(trainable=which, compute={"pads_once": once}, workers={"text_cache_mb": int(cached)})
    if lora:
        from altdiffusion.training.model.lora import add_adapters

        config = settings(lora={"rank": 4}, compute={"pads_once": once})
        assert config.lora is not None
        add_adapters(parts.unet, config.lora, config.trainable, seed=0)
    task = DiffusionTask(config, parts, torch.device("cpu"))
    loss = task.loss(samples(parts.tokenizer))
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in task.trained}


@pytest.mark.parametrize("which", ["kv", "all", "lora"])
def test_loss_and_gradients_are_those_of_all_pads(which: Any) -> None:
    lora, trainable = which == "lora", "kv" if which == "lora" else which
    loss, gradients = losses(trainable, lora, once=False)
    again, few = losses(trainable, lora, once=True)
    torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-7)
    assert few.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(few[name], gradient, rtol=1e-4, atol=1e-5 * scale + 1e-9, msg=name)


def test_a_cache_of_text_gives_the_same() -> None:
    loss, _ = losses("kv", False, once=True)
    cached, _ = losses("kv", False, once=True, cached=True)
    torch.testing.assert_close(cached, loss, rtol=1e-5, atol=1e-7)


def test_keys_and_values_are_computed_for_the_columns_alone() -> None:
    for once, columns in ((False, TOKENS), (True, 8)):
        parts = bundle()
        task = DiffusionTask(settings(compute={"pads_once": once}), parts, torch.device("cpu"))
        shapes: set[tuple[int, int]] = set()

        def note(_: Any, given: Any, made: Any, shapes: set[tuple[int, int]] = shapes) -> None:
            shapes.add((given[0].shape[1], made.shape[1]))

        for module in task.unet.modules():
            if getattr(module, "is_cross_attention", False):
                module.to_k.register_forward_hook(note)
                module.to_v.register_forward_hook(note)
        task.loss(samples(parts.tokenizer))
        assert shapes == {(columns, TOKENS)}  # read, and attended to
