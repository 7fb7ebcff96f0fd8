"""`altdiffusion play --model REF`: a page to try a model in a browser."""

from __future__ import annotations

import argparse

from altdiffusion.cli.arguments import Verbs, own_lake_argument
from altdiffusion.cli.drawing_arguments import drawing_arguments, drawing_settings
from altdiffusion.cli.model_argument import model_argument, model_settings


def register(verbs: Verbs) -> None:
    """Add `play`."""
    text = "try a model in a browser: one prompt, or one prompt in 18 languages side by side"
    parser = verbs.add_parser("play", help=text, description=text)
    model_argument(parser)
    drawing_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine)")
    parser.add_argument("--port", type=int, metavar="N", help="default: the first free one from 7860 on")
    own_lake_argument(parser)
    parser.set_defaults(run=play)


def play(arguments: argparse.Namespace) -> int:
    """Load a model and serve its page until the process is interrupted.

    Raises:
        AltDiffusionError: the model or an option is not usable, or the extra `play` is missing.
    """
    from altdiffusion.config import from_dict
    from altdiffusion.diffusion.models import check_device
    from altdiffusion.generation.model import check_sampling, resolve_model
    from altdiffusion.generation.settings import GenerateConfig
    from altdiffusion.play.drawing import Drawing
    from altdiffusion.play.page import build_page, require_gradio, serve

    require_gradio()
    settings = {
        "model": model_settings(arguments.model, arguments.lake, arguments.base_configs),
        "prompts": {"file": "the page"},
        **drawing_settings(arguments),
    }
    config = from_dict(GenerateConfig, settings, "altdiffusion play")
    check_device(config.device)
    model = resolve_model(config.model, arguments.lake)
    check_sampling(model, config.sampler, config.steps)
    print(f"draws with {model.ref.short}", flush=True)
    drawing = Drawing(model, config)
    try:
        page = build_page(drawing, steps=config.steps, guidance_scale=config.guidance_scale, sampler=config.sampler)
        serve(page, arguments.host, arguments.port)
    finally:
        drawing.close()
    return 0
