"""The resident process that owns the device, and the client that talks to it. Import the submodules."""
