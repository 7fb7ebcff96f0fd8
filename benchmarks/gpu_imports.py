"""The libraries that the cases of `benchmarks.gpu` import, imported once for all of them."""

import contextlib

with contextlib.suppress(ImportError):  # the case that needs it states it
    from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel  # noqa: F401
    from diffusers.optimization import get_scheduler  # noqa: F401
    from diffusers.training_utils import EMAModel  # noqa: F401
    from transformers import AltCLIPTextModel, CLIPVisionModelWithProjection  # noqa: F401
