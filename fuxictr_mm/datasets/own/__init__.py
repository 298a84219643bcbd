"""Reading of the user's own log: the parts of the reader ``log``."""
