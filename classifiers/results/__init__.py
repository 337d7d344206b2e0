"""Results: predictions and their metrics."""
