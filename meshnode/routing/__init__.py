"""PURE: which nodes can answer for a model, and which of them shall."""
