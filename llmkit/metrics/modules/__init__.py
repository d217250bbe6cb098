"""The metrics as `evaluate` modules, loaded by path and offline: `evaluate.load("…/modules/llmkit_bleu")`.

Nothing in llmkit imports these: `evaluate` takes seconds and hundreds of megabytes to import.
"""
