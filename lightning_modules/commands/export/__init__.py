"""`aegpo export`: a checkpoint for diffusers, checked."""
