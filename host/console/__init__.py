"""``host console``: a conversation at this machine's microphone and loudspeaker, or in writing, without any server.

The console is the caller at the far end of a line (``host.job.line``); the agent is in a job process like any other.
"""
