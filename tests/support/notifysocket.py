"""The service manager's end of sd_notify(3)."""

from __future__ import annotations

import socket


class NotifySocket:
    """A socket called `name`, as NOTIFY_SOCKET has it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self.heard: list[str] = []

    def messages(self) -> list[str]:
        """What was told since the last call."""
        news: list[str] = []
        while True:
            try:
                news.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                self.heard += news
                return news

    def has_heard(self, message: str) -> bool:
        """Whether `message` was ever told."""
        self.messages()
        return message in self.heard

    def close(self) -> None:
        """Listens no more."""
        self._socket.close()
