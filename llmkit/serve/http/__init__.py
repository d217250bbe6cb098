"""The OpenAI-compatible server: who is let in, what they ask, how it is answered, drained and counted."""
