"""The clinic: small training scripts after public threads, each ailing and healed, and what the doctor says to them."""
