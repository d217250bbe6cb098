"""The metrics as `evaluate` modules, loaded by path and offline: `evaluate.load("…/modules/llmkit_bleu")`.

llmkit_bleu, llmkit_rouge, llmkit_chrf, llmkit_exact_match, llmkit_f1, llmkit_variety; llmkit_refusals and llmkit_sensitive
take their test when loaded: `evaluate.load("…/modules/llmkit_refusals", is_refusal=lambda text: …)`.
Nothing in llmkit imports these: `evaluate` takes seconds and hundreds of megabytes to import.
"""
