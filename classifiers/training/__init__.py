"""Training: what is asked for, protocols, fits, the folder of a model, and predictions from it."""
