"""Is it true? What entropy predicts, what methods reach, what a logged run would have decided."""
