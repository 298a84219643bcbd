"""Principal components of modalities, apart and joint."""
