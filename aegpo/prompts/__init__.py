"""Prompts: the batch that an iteration is about, and where its texts come from."""

from aegpo.prompts.batch import PromptBatch, category_of

__all__ = ["PromptBatch", "category_of"]
