"""How a training ends: its last model is scored, and what came of it is said."""
