"""Speed and memory of this package, compared with a padded reference."""
