"""What will it cost? Counts of evaluations and memory, before anything is loaded."""
