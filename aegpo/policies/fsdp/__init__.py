"""A denoiser that is spread over ranks, and calls of it that all ranks do together."""
