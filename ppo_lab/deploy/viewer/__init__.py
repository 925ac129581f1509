"""A policy acts live in the browser: `session` is what is simulated and steered, `page` what is shown of it."""
