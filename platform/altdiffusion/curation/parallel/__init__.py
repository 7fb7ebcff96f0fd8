"""Texts and their translations: from corpora as published to token ids for distillation."""
