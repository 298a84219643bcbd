"""Reading a log of one's own: the parts of the reader ``log``."""
