"""What an evaluation is made of: its questions, its variants and their runtimes, the report, the verdict.

`steps/eval.py` puts them in order; nothing here knows of recipes or of where a run's folders lie.
"""
