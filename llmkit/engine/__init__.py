"""The torch zone: everything that touches weights or tokens."""

import logging

# peft imports bitsandbytes, which then warns of a kernel that only a hub could give it.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
