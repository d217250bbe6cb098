"""Talking to an artifact: what speaks, in whichever runtime, and the OpenAI-compatible server before it."""
