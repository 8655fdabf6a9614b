"""What a model is worth on a suite of prompts: suites, intervals, tables. Imported before torch."""
