"""Is the export the model? Checked by diffusers itself, with a model card."""
