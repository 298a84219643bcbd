"""Training, scoring and tuning: commands of ``fuxictr-mm``, and the scripts of FuxiCTR's names."""
