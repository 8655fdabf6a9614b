"""The families of models, a file each, and beside them the bases that several share."""
