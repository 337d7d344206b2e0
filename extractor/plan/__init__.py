"""What a run is to do: which recordings changed since the last time, and batches of like length."""
