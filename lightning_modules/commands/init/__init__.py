"""``aegpo init``: a folder to start from. Imported before torch: nothing heavy here."""
