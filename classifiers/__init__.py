"""What is learned from embeddings: classifiers, evaluation, lookup. Empty so far."""
