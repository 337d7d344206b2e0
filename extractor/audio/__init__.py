"""Audio: headers, decoders, how long a recording is, decoding ahead within memory, cutting and resampling."""
