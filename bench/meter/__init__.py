"""The meter of a training step on an accelerator, without one: launches, bytes, memory and time, from what is really called."""
