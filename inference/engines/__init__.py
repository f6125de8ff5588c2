"""One file per model library, behind the interfaces of ``base``."""
