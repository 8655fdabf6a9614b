"""What was mistyped, in one line. Imported before torch: nothing heavy here."""
