"""From `sys.argv` to a command. Imported before torch: nothing heavy here."""
