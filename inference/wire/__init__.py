"""The contract between processes: frames, messages, legal order, rings. Standard library only.

Read in this order: ``tlv`` (bytes of a frame), ``messages`` (a job and the inference process),
``supervision`` (the supervisor and its children), ``connection`` (what is legal when, sans-IO),
``ring`` (audio in shared memory), ``stream`` (the asyncio shell around a connection).
"""
