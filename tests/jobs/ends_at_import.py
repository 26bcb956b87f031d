"""A module that cannot be imported: it ends its process, as a crash in an extension would."""

import os
import sys

if "pytest" not in sys.modules:
    os._exit(7)
