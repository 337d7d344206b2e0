"""A run: recordings in, rows of a store out, on one device or several, stopped and gone on with at will.

From the call to the rows:

    options       what a run can be asked, checked before anything is read
    engine        `extract`, `run`: on one device or on several
    devices       a process for each of several, and their reports
    one_device    inputs, model and plan; then the batches that are left
    pipeline      decode ahead -> encode, some batches at once -> commit behind
    batch         `DecodedBatch` -> `DeviceBatch` -> `BatchResult`
    memory        how much audio a forward pass may take
    recipe        what of the settings makes a row, for the run and for what is compared with it
    indexing, remarks, fidelity, interruption   FAISS on the way, notes, the check of int8, Ctrl-C
    render        augmented copies as audio
"""
