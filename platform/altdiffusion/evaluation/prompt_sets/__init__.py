"""Sets of prompts in many languages with their English texts: what an evaluation draws and measures."""
