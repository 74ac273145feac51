"""PURE: which nodes can answer for a model, and which of them shall.

Each module knows only those before it:

table       from what the members say to the candidates for one request
prefix      beginnings of prompts as chains of hashes, and sketches of what is cached; ask is a request in figures
estimate    how long it would take at a candidate, term by term
prefixes    what is believed to be cached where; bookings is what we sent and is not over
breaker     who may not be asked after failures; budget is how many second tries there are
knowledge   all that we know by our own dealings; policy chooses by it; explain says why
router      one policy with its knowledge: what the shell holds

bounce and queue are the serving side's: what it gives back, and who is next.
"""
