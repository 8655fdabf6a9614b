"""Where a run is kept: its name, its number, and that no two processes take the same."""
