"""Progress bars and advice of transformers and diffusers are kept out of a job's output, which `Progress` writes."""

from __future__ import annotations

import functools
import os


@functools.cache
def quiet_libraries() -> None:
    """Let both libraries log errors only and show no bars; a log level that the user set in the environment stays."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for name, logging in (("TRANSFORMERS", transformers_logging), ("DIFFUSERS", diffusers_logging)):
        logging.disable_progress_bar()
        if f"{name}_VERBOSITY" not in os.environ:
            logging.set_verbosity_error()
