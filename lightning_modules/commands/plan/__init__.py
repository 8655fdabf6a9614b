"""`aegpo plan`: what a run will do and cost."""
