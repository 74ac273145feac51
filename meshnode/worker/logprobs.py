"""How likely the model thought a token: log-probabilities over the whole vocabulary, before any filter or penalty (pure).

That is what OpenAI and llama-server show: the logarithm of the softmax of the raw logits, whatever the temperature. It costs one
pass over the row, some 0.3 ms at 150,000 tokens, so it is made only where it was asked for.
"""

from collections.abc import Callable

import numpy as np

from meshnode.inference import LOWEST_LOGPROB, MAX_TOKEN_TEXT, Alternative, TokenLogprob
from meshnode.worker.sampling import Logits, likeliest


def of_token(logits: Logits, token: int, top: int, piece: Callable[[int], bytes]) -> TokenLogprob:
    """That of `token` and of the `top` likeliest, likeliest first. `piece` gives the text of a token."""
    highest = np.max(logits)
    total = float(highest) + float(np.log(np.sum(np.exp(logits - highest), dtype=np.float64)))

    def alternative(token: int) -> Alternative:
        logprob = max(LOWEST_LOGPROB, min(0.0, float(logits[token]) - total))
        return Alternative(token=token, text=piece(token)[:MAX_TOKEN_TEXT], logprob=logprob)

    drawn = alternative(token)
    others = tuple(alternative(int(other)) for other in likeliest(logits, top)) if top else ()
    return TokenLogprob(token=drawn.token, text=drawn.text, logprob=drawn.logprob, top=others)
