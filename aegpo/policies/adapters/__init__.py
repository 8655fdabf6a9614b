"""Adapters as files: read from any layout that diffusers knows, written in those of others."""
