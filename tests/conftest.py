"""Properties are tried on the same examples in every run, so that a failure is about the change at hand.

`MESHNODE_EXPLORE=1` tries others each time; what that finds becomes an example or a test of its own.
"""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
if not os.environ.get("MESHNODE_EXPLORE"):
    settings.load_profile("repeatable")
