"""The page itself, in Gradio (the extra `play`). It loads nothing from other hosts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, get_args

from altdiffusion.errors import AltDiffusionError
from altdiffusion.generation.settings import SamplerName
from altdiffusion.languages import LANGUAGES
from altdiffusion.play.drawing import Drawing
from altdiffusion.play.examples import examples

_MOST_IMAGES = 8
_FONT = ["system-ui", "Noto Sans", "sans-serif"]
_CSS = """
.gradio-container {max-width: 1280px !important; margin: 0 auto}
@media (max-width: 720px) {
  #main {flex-direction: column}
  #main > .column {min-width: 0 !important; width: 100%}
  #results {order: -1}
  #main .grid-container {grid-template-columns: repeat(3, minmax(0, 1fr)) !important}
}
"""
Images = list[tuple[str, str]]


def require_gradio() -> Any:
    """Return the package gradio, with its reports to its makers switched off.

    Raises:
        AltDiffusionError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise AltDiffusionError(
            "altdiffusion play", f"needs the package gradio ({error})", "install the extra: pip install '.[play]'"
        ) from error
    return gradio


def build_page(drawing: Drawing, *, steps: int, guidance_scale: float, sampler: SamplerName) -> Any:
    """Return the page (`gradio.Blocks`) of a loaded model; the arguments are the values it begins with."""
    gradio = require_gradio()
    os.environ["GRADIO_TEMP_DIR"] = str(drawing.folder / "served")  # its copies go with the drawing
    title = f"AltDiffusion: {drawing.model.ref.name}"
    with gradio.Blocks(title=title) as page:
        gradio.Markdown(f"## {drawing.model.ref.name}\n{drawing.model.ref.short}")
        with gradio.Row(elem_id="main"):
            with gradio.Column(scale=1, min_width=320):
                controls = _controls(gradio, drawing, steps, guidance_scale, sampler)
            with gradio.Column(scale=3, min_width=320, elem_id="results"), gradio.Tabs():
                with gradio.Tab("18 languages"):
                    _languages_tab(gradio, drawing, controls)
                with gradio.Tab("One prompt"):
                    _prompt_tab(gradio, drawing, controls)
    return page


def serve(page: Any, host: str, port: int | None, *, wait: bool = True) -> str:
    """Serve the page and return its address; with `wait`, only when the process is interrupted.

    Raises:
        AltDiffusionError: the port is in use.
    """
    gradio = require_gradio()
    try:
        _, address, _ = page.queue(default_concurrency_limit=1).launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            show_error=True,
            ssr_mode=False,
            footer_links=[],
            theme=gradio.themes.Default(font=_FONT, font_mono=["ui-monospace", "monospace"]),
            css=_CSS,
            app_kwargs={"middleware": _only_own_names(host)},
        )
    except OSError as error:
        raise AltDiffusionError(f"port {port}", f"cannot be used ({error})", "give another one as --port") from error
    print(f"open {address}", flush=True)
    if wait:
        page.block_thread()
    return str(address)


def _only_own_names(host: str) -> list[Any]:
    """Return what refuses requests under another name than the page's own.

    A page of the open web can have its own name resolve to this machine (DNS rebinding), and its browser then takes
    this server for its own. Where the server listens on all addresses on purpose, its names are not known.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if host in ("0.0.0.0", "::"):
        return []
    return [Middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost", "127.0.0.1"])]


def _controls(gradio: Any, drawing: Drawing, steps: int, guidance_scale: float, sampler: SamplerName) -> list[Any]:
    """Add what both tabs share, in the order of `_settings`."""
    with gradio.Row():
        seed = gradio.Number(42, label="Seed", precision=0, minimum=0, elem_id="seed")
        another = gradio.Button("Another seed", min_width=80)
    guidance = gradio.Slider(0, 20, guidance_scale, step=0.5, label="Guidance scale (1: none)", elem_id="guidance")
    steps_slider = gradio.Slider(1, 100, steps, step=1, label="Steps", elem_id="steps")
    sampler_choice = gradio.Dropdown(list(get_args(SamplerName)), value=sampler, label="Sampler")
    with gradio.Row():
        width, height = (
            gradio.Number(drawing.side, label=label, precision=0, step=drawing.multiple, min_width=100)
            for label in ("Width", "Height")
        )
    negative = gradio.Textbox("", label="Negative prompt", lines=1)
    another.click(lambda value: int(value or 0) + 1, seed, seed, show_progress="hidden")
    return [seed, guidance, steps_slider, sampler_choice, width, height, negative]


def _settings(values: tuple[Any, ...]) -> dict[str, Any]:
    names = ("seed", "guidance_scale", "steps", "sampler", "width", "height", "negative_prompt")
    return dict(zip(names, values, strict=True))


def _languages_tab(gradio: Any, drawing: Drawing, controls: list[Any]) -> None:
    known = examples()
    first = next(iter(known))

    def table(prompts: dict[str, str]) -> list[list[str]]:
        return [[f"{one.native} ({one.code})", prompts.get(one.code, "")] for one in LANGUAGES]

    chosen = gradio.Dropdown(list(known), value=first, label="A prompt in 18 languages; each can be changed below")
    draw = gradio.Button("Draw in all languages", variant="primary", elem_id="draw-languages")
    gallery = gradio.Gallery(columns=6, height="auto", show_label=False, format="png", elem_id="languages")
    prompts = gradio.Dataframe(
        table(known[first]),
        headers=["language", "prompt"],
        type="array",
        interactive=True,
        static_columns=[0],
        column_widths=["32%", "68%"],
        row_count=len(LANGUAGES),
        max_height=1000,
        wrap=True,
        label="Prompts; a language without one is left out",
        elem_id="prompts",
    )
    chosen.change(lambda name: table(known[name]), chosen, prompts, show_progress="hidden")

    def draw_all(rows: list[list[str]], *values: Any) -> Iterator[Images]:
        written = [(one.code, str(row[1]).strip()) for one, row in zip(LANGUAGES, rows, strict=False) if row[1]]
        written = [(code, prompt) for code, prompt in written if prompt]
        captions = [f"{code}: {prompt}" for code, prompt in written]
        yield from _drawn(gradio, drawing, [prompt for _, prompt in written], captions, _settings(values))

    draw.click(draw_all, [prompts, *controls], gallery, concurrency_id="model")


def _prompt_tab(gradio: Any, drawing: Drawing, controls: list[Any]) -> None:
    prompt = gradio.Textbox(label="Prompt, in any language", lines=2, elem_id="prompt")
    count = gradio.Slider(1, _MOST_IMAGES, 4, step=1, label="Images (seeds counted up)", elem_id="count")
    draw = gradio.Button("Draw", variant="primary", elem_id="draw-prompt")
    gallery = gradio.Gallery(columns=4, height="auto", show_label=False, format="png", elem_id="images")

    def draw_one(text: str, number: float, *values: Any) -> Iterator[Images]:
        settings = _settings(values) | {"count": number}
        captions = [f"seed {int(settings['seed'] or 0) + place}" for place in range(int(number))]
        yield from _drawn(gradio, drawing, [text], captions, settings)

    for event in (draw.click, prompt.submit):
        event(draw_one, [prompt, count, *controls], gallery, concurrency_id="model")


def _drawn(
    gradio: Any, drawing: Drawing, prompts: list[str], captions: list[str], settings: dict[str, Any]
) -> Iterator[Images]:
    """Yield the images so far with their captions; what is wrong is shown on the page."""
    try:
        for files in drawing.draw(drawing.requests(prompts, **settings)):
            yield [(str(file), caption) for file, caption in zip(files, captions, strict=True) if file is not None]
    except AltDiffusionError as error:
        raise gradio.Error(str(error), duration=None, print_exception=False) from error
