"""Who sends an HTTP request: host names, origins of web pages, proxies, secrets and rates, for controller and dashboard."""

from __future__ import annotations

import hmac
import ipaddress
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""Headers of proxies: through one, a caller from anywhere seems to be on this machine."""


class Rate:
    """A token bucket for each caller; of more than ``callers`` the least recently seen is dropped.

    >>> rate = Rate(requests_per_s=2.0, burst_requests=1)
    >>> rate.wait_s("10.0.0.1", 0.0), rate.wait_s("10.0.0.1", 0.0), rate.wait_s("10.0.0.1", 0.5)
    (0.0, 0.5, 0.0)
    """

    def __init__(self, *, requests_per_s: float, burst_requests: int, callers: int = 1024) -> None:
        self._requests_per_s = requests_per_s
        self._burst_requests = burst_requests
        self._callers = callers
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, now_s: float) -> float:
        """Seconds to wait before the next request; 0 admits and counts a request."""
        left, seen_s = self._buckets.pop(caller, (float(self._burst_requests), now_s))
        left = min(self._burst_requests, left + max(0.0, now_s - seen_s) * self._requests_per_s)
        wait_s = 0.0 if left >= 1.0 else (1.0 - left) / self._requests_per_s
        self._buckets[caller] = (left - (wait_s == 0.0), now_s)
        if len(self._buckets) > self._callers:
            self._buckets.popitem(last=False)
        return wait_s


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only.

    >>> is_loopback("localhost"), is_loopback("::1"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


_HOST = re.compile(r"(?:\[(?P<address>[0-9A-Fa-f:.]+)\]|(?P<name>[\w.~-]+))(?::\d{1,5})?", re.ASCII)


def host_name(host: str) -> str | None:
    """The name or address in a Host header, without its port; None if it is no host.

    >>> host_name("127.0.0.1:8700"), host_name("[::1]:8700"), host_name("a.example")
    ('127.0.0.1', '::1', 'a.example')
    >>> host_name("[::1"), host_name("a:b"), host_name("user@a"), host_name("a/b")
    (None, None, None, None)
    """
    found = _HOST.fullmatch(host)
    return (found["address"] or found["name"]) if found else None


def caller_of(scope: Mapping[str, Any]) -> str:
    """The caller's address; for IPv6 its /64, which one machine may own entirely.

    >>> caller_of({"client": ("2001:db8::1:2:3:4", 5)})
    '2001:db8::'
    """
    client = scope.get("client")
    if not client:
        return ""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return str(client[0])
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)).network_address)


def is_foreign(origin: str | None, host: str) -> bool:
    """Whether a browser sends the request for a page of another origin.

    >>> is_foreign("https://evil.example", "127.0.0.1:8700"), is_foreign("http://127.0.0.1:8700", "127.0.0.1:8700")
    (True, False)
    >>> is_foreign("null", "127.0.0.1:8700"), is_foreign(None, "127.0.0.1:8700")
    (True, False)
    """
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:
        return True


def is_same(given: str, known: str | None) -> bool:
    """Whether a secret is the known one, compared in constant time."""
    return known is not None and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), known.encode())
