"""`aegpo doctor`: this machine, and a config's first update.

Imported before torch: nothing heavy here.
"""
