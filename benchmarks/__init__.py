"""Speed and memory of this package, measured side by side with the padded way of doing the same."""
