"""What a run is to do: which recordings changed since the last time, and batches of like length.

batches    batches under a budget of audio; `Planner` makes lines of the manifest of them
windows    a recording that is too long for one forward pass
matching   which recordings of a run are which of its input now
changes    what is to be described anew, encoded again, added and dropped
run_plan   `make_plan`: all of it, as the pipeline takes it
"""
