"""What is learned from: rows of one or several runs, their features, labels and groups."""
