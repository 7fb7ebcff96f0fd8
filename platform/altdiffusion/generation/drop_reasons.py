"""Why generation drops rows: every reject reason, once.

The names are stored in rejects, ledgers and manifests and never change; the sentences are for people (docs/rejects.md).
"""

from __future__ import annotations

from altdiffusion.execution.reject_reasons import Reasons

KNOWN = Reasons()
"""Every reason by its name."""
_reason = KNOWN.define

# The prompts file, in the order in which a row is checked.
PROMPT_ROW = _reason("prompt_row", "the row cannot be read, or a value has the wrong type")
PROMPT_BLANK = _reason("prompt_blank", "the prompt is missing or blank")
PROMPT_CHARACTERS = _reason("prompt_characters", "the prompt has control characters")
PROMPT_LENGTH = _reason("prompt_length", "the prompt has more characters than the job allows")
PROMPT_ID = _reason("prompt_id", "the id cannot be the name of a file")
PROMPT_LANGUAGE = _reason("prompt_language", "the language is not a BCP 47 tag, or is not wanted")
PROMPT_SEED = _reason("prompt_seed", "the seed is not a whole number of 64 bits")
PROMPT_SIZE = _reason("prompt_size", "a side is not a whole number, out of range, or not a multiple")
PROMPT_SETTING = _reason("prompt_setting", "a sampler setting of the row cannot be used")
PROMPT_REGIONS = _reason("prompt_regions", "the prompts by region cannot be used")
PROMPT_DUPLICATE = _reason("prompt_duplicate", "an earlier row has the same id")
PROMPT_BLOCKED = _reason("prompt_blocked", "the prompt has a term that the job blocks", withheld=True)

# Drawing.
NOT_FINITE = _reason("not_finite", "the networks gave NaN or infinity, so there is no image")
IMAGE_BLOCKED = _reason("image_blocked", "the job's image checker refuses the image", withheld=True)
