"""What is learned from embeddings: nearest-neighbour lookup and its evaluation, classifiers, reports."""
