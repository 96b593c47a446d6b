"""How many unfinished requests each tenant may have at one API server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class TenantLimits:
    """Counts the unfinished requests of each tenant; tenants without any are not kept.

    Args:
        default: Limit of a tenant that has none of its own, and of all requests without a tenant together; None for no limit.
        own: Limits of single tenants.

    >>> limits = TenantLimits(1, {})
    >>> limits.enter("a"), limits.enter("a"), limits.enter("b")
    (None, 1, None)
    """

    def __init__(self, default: int | None, own: Mapping[str, int]) -> None:
        self._default = default
        self._own = own
        self._unfinished: Counter[str | None] = Counter()

    def enter(self, tenant: str | None) -> int | None:
        """Count one more request; returns the limit, and counts nothing, where the tenant has as many already."""
        most = self.most(tenant)
        if most is not None and self._unfinished[tenant] >= most:
            return most
        self._unfinished[tenant] += 1
        return None

    def most(self, tenant: str | None) -> int | None:
        """Return the limit of a tenant, or of the requests without one."""
        return self._default if tenant is None else self._own.get(tenant, self._default)

    def leave(self, tenant: str | None) -> None:
        """Count a request that `enter` counted as finished."""
        self._unfinished[tenant] -= 1
        if not self._unfinished[tenant]:
            del self._unfinished[tenant]
