"""The commands: hser-extract, hser-store, hser-augment. Thin; everything they do is in the library."""
