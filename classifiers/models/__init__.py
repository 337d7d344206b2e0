"""The classifiers, one row of a table each, and the files they are kept in."""
