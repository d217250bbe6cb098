"""One group's probes in this process: `python -m llmkit.doctor GROUP FOLDER`."""

import sys
from pathlib import Path

from llmkit.doctor.examining import serve

serve(sys.argv[1], Path(sys.argv[2]))
