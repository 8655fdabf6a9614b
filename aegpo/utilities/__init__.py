"""What the rest of the package shares and nobody reads for the method."""
