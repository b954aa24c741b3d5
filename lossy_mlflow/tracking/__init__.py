"""Runs and what stands in them: identity, states, params, provenance, training state.

This file imports nothing, so that the watcher process, which lives in this package, stays small.
"""
