"""What makes a denoiser faster and leaves its predictions alone."""
