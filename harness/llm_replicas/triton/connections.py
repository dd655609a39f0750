"""Connections to one HTTP endpoint: kept and reused, or a new one for every request.

The pool has no upper size: a limit here would be a hidden queue in front of the system under test. Idle
connections are used in turn (oldest first), so that the load stays spread over everything behind the
endpoint.
"""

from __future__ import annotations

import itertools
import os
import socket
import ssl
from collections import deque
from typing import Literal
from urllib.parse import urlsplit

from llm_replicas.errors import UsageError

Reuse = Literal["reuse", "new"]

_numbers = itertools.count(1)


class Connection:
    """One TCP (or TLS) connection, with a name that is unique in the run."""

    __slots__ = ("id", "socket", "used")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.id = f"{os.getpid()}-{next(_numbers)}"
        self.used = 0

    def idle_alive(self) -> bool:
        """Whether an idle connection is still open; bytes or an end that nobody asked for spoil it."""
        try:
            self.socket.settimeout(0.0)
            self.socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    def abort(self) -> None:
        """Wake whoever waits on it; safe from another greenlet or thread."""
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    def close(self) -> None:
        """Close it."""
        try:
            self.socket.close()
        except OSError:
            return


class ConnectionPool:
    """Connections to the host and port of one URL."""

    def __init__(self, url: str, reuse: Reuse = "reuse", ca_file: str | None = None) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"URL {url!r}: accepted is http://HOST[:PORT] or https://HOST[:PORT]")
        try:
            port = parts.port
        except ValueError as error:
            raise UsageError(f"URL {url!r}: {error}; accepted is http://HOST[:PORT]") from error
        self.host = parts.hostname
        self.port = port or (443 if parts.scheme == "https" else 80)
        self.path = parts.path.rstrip("/")
        self.authority = parts.netloc.rpartition("@")[2]
        self._reuse = reuse == "reuse"
        self._tls = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else None
        self._idle: deque[Connection] = deque()

    def take_idle(self) -> Connection | None:
        """An open idle connection, or None."""
        while self._idle:
            connection = self._idle.popleft()
            if connection.idle_alive():
                return connection
            connection.close()
        return None

    def open(self, timeout: float) -> Connection:
        """Make a new connection; raises OSError (a timeout included) where that fails."""
        sock: socket.socket = socket.create_connection((self.host, self.port), timeout=timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            sock = self._tls.wrap_socket(sock, server_hostname=self.host)
        return Connection(sock)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer has ended cleanly."""
        if self._reuse:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.popleft().close()
