"""Vectors to codes: codebooks, how they are fitted, how they are applied."""
