"""Studies over many fits: every layer, every pair of corpora, another one, stability under augmentation."""
