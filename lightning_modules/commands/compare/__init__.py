"""`aegpo compare`: methods and seeds at equal compute."""
