"""Items that the same users like, brought near each other."""
