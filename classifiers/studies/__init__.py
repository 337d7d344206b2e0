"""Studies over many fits: every layer, every pair of corpora, another corpus, stability under augmentation."""
