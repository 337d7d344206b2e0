"""The input: folders, files and tables to a manifest of utterances, with ids and labels."""
