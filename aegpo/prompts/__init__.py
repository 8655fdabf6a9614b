"""Prompts: the batch that an iteration is about, and where its texts come from."""

from aegpo.prompts.batch import PromptBatch

__all__ = ["PromptBatch"]
