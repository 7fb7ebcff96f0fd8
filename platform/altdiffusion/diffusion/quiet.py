"""Keeps progress bars and advice of transformers and diffusers out of a job's output: `Progress` is the one voice."""

from __future__ import annotations

import functools
import os


@functools.cache
def quiet_libraries() -> None:
    """Errors only, no bars; a level that the user has set in the environment stays."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for name, logging in (("TRANSFORMERS", transformers_logging), ("DIFFUSERS", diffusers_logging)):
        logging.disable_progress_bar()
        if f"{name}_VERBOSITY" not in os.environ:
            logging.set_verbosity_error()
