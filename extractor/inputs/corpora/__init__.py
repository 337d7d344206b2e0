"""Corpora of emotional speech: the table of them, their own files, their words, and whose names are whose."""
