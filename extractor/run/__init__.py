"""A run: recordings in, rows of a store out, on one device or several, stopped and gone on with at will."""
