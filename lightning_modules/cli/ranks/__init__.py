"""What ends one rank ends them all, soon, with one line each, and never with status 0."""
