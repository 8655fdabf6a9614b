"""`aegpo report`: one page about a run, or about several side by side, from the files they left."""
