"""Pages of HTML that stand alone: no network, no file beside them, and every text as it is."""
