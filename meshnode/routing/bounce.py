"""Whether a node gives a request back that it was just sent (pure).

The asker went by old news. If the node knows that the first token will come much later than the asker thinks, it refuses with its
present load, and the asker chooses again: that costs a round trip, and waiting in the wrong queue costs seconds.
"""

TOLERANCE = 1.5
SLACK_S = 0.5
"""By how much the truth may be worse. Below that to choose again brings less than it costs the others, whose news get old too."""
MAX_BOUNCES = 2
"""Of one request. After that it stays where it is: it would otherwise travel for ever while everybody is busy."""


def bounces(*, expected_s: float, true_s: float, before: int) -> bool:
    """`expected_s`: the asker's estimate of the time to the first token; `before`: how often the request was given back."""
    return before < MAX_BOUNCES and true_s > TOLERANCE * expected_s + SLACK_S
