"""What a run would take in memory, before it runs."""
