"""Looks at a machine and says what is wrong with it, and the command that mends it. Knows llmkit's needs; changes nothing.

Each group of probes runs in a process of its own, for a limited time: a library that crashes, or a disk that never answers, is
a finding and ends nothing. Within a group a probe that raises takes no other with it.
"""

from llmkit.doctor.examining import examine
from llmkit.doctor.finding import LEVELS, Finding, Level

__all__ = ["LEVELS", "Finding", "Level", "examine"]
