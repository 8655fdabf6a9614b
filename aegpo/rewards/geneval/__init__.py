"""GenEval's verdict: objects found in an image against the clauses of its prompt."""
