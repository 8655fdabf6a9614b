"""`aegpo evaluate`: base and tuned models on a suite of prompts. Imported before torch."""
