"""Runs of other frameworks become run folders. Nothing but `cli` imports them."""
