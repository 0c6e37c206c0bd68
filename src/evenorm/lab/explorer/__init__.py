"""The explorer: one page on which to choose a normalizer and watch what it computes."""
