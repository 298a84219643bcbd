"""An HTML page about runs: which experiment is best, by how much, why, and at what cost."""
