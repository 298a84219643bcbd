"""One HTML page about the runs there are: what is best, by how much, why, and what it cost."""
