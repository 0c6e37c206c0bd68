"""One rule per file, found by this folder."""
