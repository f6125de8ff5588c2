"""Virtual callers against the real process tree: how many rooms this machine holds."""
