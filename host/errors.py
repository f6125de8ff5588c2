"""What can stop the host, each with the exit code that scripts and service managers may rely on.

    HostError                 1   anything else
    ├── ConfigError           2   a wrong flag, configuration value, agent file or wave file
    ├── ModelsError           3   a model is missing, cut or has the wrong checksum
    ├── DeviceError           4   the device asked for is not there or too small
    ├── InferenceError        5   the inference process failed its warm-up or keeps dying
    ├── ConnectionFailedError 6   no LiveKit server at the URL, or it stayed away; `host status`: no host at the URL
    ├── AuthenticationError   7   the server refused the API key or secret
    ├── PortInUseError        8   the HTTP port is taken
    └── ConversationError     9   `host talk`: no answer; `simulate`, `console`: the job failed; `loadtest`: cross-talk

130 and 143 are interrupted by SIGINT and SIGTERM, as in a shell.
"""


class HostError(Exception):
    """Base of what the host reports to a person: one message, no traceback."""

    exit_code = 1


class ConfigError(HostError):
    """Something the user gave is wrong; the message names it and says what is allowed."""

    exit_code = 2


class ModelsError(HostError):
    """A model file is missing or not what the catalogue says."""

    exit_code = 3


class DeviceError(HostError):
    """The device cannot be used as asked."""

    exit_code = 4


class InferenceError(HostError):
    """The inference process cannot serve."""

    exit_code = 5


class ConnectionFailedError(HostError):
    """No LiveKit server answers; or, for ``host status``, no host."""

    exit_code = 6


class AuthenticationError(HostError):
    """The LiveKit server answers and refuses us."""

    exit_code = 7


class PortInUseError(HostError):
    """Something else listens on the port."""

    exit_code = 8


class ConversationError(HostError):
    """A conversation in a local room, a simulated job or a load test did not go as it should."""

    exit_code = 9
