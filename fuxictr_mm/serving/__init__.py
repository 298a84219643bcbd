"""From a trained experiment to scores without torch."""
