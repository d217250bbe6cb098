"""What a model needs, computed before anything is loaded: bytes of weights, peaks of memory, disk, time, and what fits.

Pure arithmetic over a config.json and a few facts of this machine. The numbers follow the code of engine/ and gguf/, and
tests hold them against what those really do.
"""
