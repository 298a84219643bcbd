"""What a prediction is worth: metrics over all rows and within groups, influence of rows, diagnosis of a model."""
