"""Memory plan of a run, before it runs."""
