"""Weighted fair shares: between tenants the least served goes first, within a tenant the index.

Each tenant has an account of the engine-seconds that its requests have taken, over its weight. A request is charged its
expected cost when it starts, and the difference to its real cost when it ends. Accounts are compared in rounds of
`QUANTUM_ANSWERS` mean answers, or of more where thousands wait: within a round the index orders the requests of all
tenants, so that the mean loses little, and a tenant that is a round ahead waits until the others have caught up.

A tenant that has had nothing to wait for gains nothing by that: when its first request waits, its account is raised to
that of the least served of those that wait, or to the highest of all when nobody else waits. So, of two tenants that
both have requests waiting all the time, neither is charged more than a quantum and its largest request beyond the other;
and whoever is alone gets everything. Sources: start-time fair queueing (Goyal et al., 1996), VTC (Sheng et al., 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from engine_adapter.ordering.running_order import Tracked
from store.records import FairShares

QUANTUM_ANSWERS = 10.0
"""Mean answers that a tenant may be served beyond another before it waits for it."""

MOVED_PER_ANSWER = 50.0
"""Requests that may get a new key for each answer: the longer the queues, the longer the quantum."""

QUANTUM_CHANGE = 2.0
"""Factor by which the mean cost of an answer must move before the quantum follows."""

COST_MEMORY = 0.02
"""Weight of the newest request in the running mean of the costs."""

MOST_ACCOUNTS = 1_024
"""Tenants that have an account; beyond them, and until idle ones are forgotten, the others share one."""

SHARED_ACCOUNT = ""

LAST_ROUND = float(1 << 53)
"""The highest round; only prices without any sense come so far."""


@dataclass(slots=True, eq=False)
class Account:
    """What one tenant has been served."""

    weight: float
    served_s: float = 0.0
    """Engine-seconds over the weight."""
    waiting: int = 0
    """Requests that wait."""
    requests: dict[str, Tracked] = field(default_factory=dict)
    round: int = 0
    """The one by which its requests have their keys."""


class TenantShares:
    """The accounts of the tenants.

    Args:
        move: Is given the requests whose round has changed.
    """

    def __init__(self, move: Callable[[Iterable[Tracked]], None]) -> None:
        self._move = move
        self._accounts: dict[str, Account] = {}
        self._changed: dict[Account, None] = {}
        """Accounts whose round may have changed since `settle`."""
        self._waiting = 0
        self._mean_s = 0.0
        self._last_round = 0
        """Round of the tenant that was served last."""
        self._quantum_s = 0.0
        """0 before anything was charged: all are in one round then."""

    def round_of(self, tracked: Tracked) -> int:
        """Return the round of a request's tenant; until that is known, that of the tenant that is next."""
        account: Account | None = tracked.account
        if account is not None:
            return account.round
        if not self._accounts:
            return self._last_round
        return min((each.round for each in self._accounts.values() if each.waiting), default=self._last_round)

    def settle(self) -> None:
        """Move the requests of the tenants whose round has changed; once in a step, however often it went to and fro."""
        changed, self._changed = self._changed, {}
        for account in changed:
            number = self._number(account)
            if number != account.round:
                account.round = number
                self._move(account.requests.values())

    def has_settled(self, tracked: Tracked) -> bool:
        """Whether a request's round changes with its tenant's only, which `move` tells."""
        return tracked.account is not None or not self._accounts

    def served_s(self, tenant: str) -> float:
        """Return the engine-seconds over its weight that a tenant was charged; 0 for an unknown one."""
        account = self._accounts.get(tenant)
        return 0.0 if account is None else account.served_s

    def enter(self, tracked: Tracked, tenant: str, weight: float) -> None:
        """Put an unfinished request on its tenant's account."""
        account = self._account(tenant, weight)
        account.weight = weight
        tracked.account = account
        account.requests[tracked.request_id] = tracked
        if tracked.running is None:
            self._wait(account)
        else:
            self._charge(account, tracked)

    def started(self, tracked: Tracked) -> None:
        """Charge a request that starts to run its expected cost, if that is not done yet."""
        account = tracked.account
        if account is None:
            return
        account.waiting -= 1
        self._waiting -= 1
        self._charge(account, tracked)

    def stopped(self, tracked: Tracked) -> None:
        """Record that a request that ran waits again."""
        if tracked.account is not None:
            self._wait(tracked.account)

    def leave(self, tracked: Tracked, prices: FairShares | None) -> None:
        """Correct the account by the real cost of a request that has ended, and forget the request."""
        account = tracked.account
        if account is None:
            return
        tracked.account = None
        account.requests.pop(tracked.request_id, None)
        if tracked.running is None:
            account.waiting -= 1
            self._waiting -= 1
        if prices is not None and tracked.charged_s is not None:
            self._serve(account, _cost_s(tracked, prices) - tracked.charged_s)

    def _account(self, tenant: str, weight: float) -> Account:
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= MOST_ACCOUNTS:
                self._forget_idle()
            if len(self._accounts) >= MOST_ACCOUNTS:
                tenant = SHARED_ACCOUNT
            account = self._accounts.setdefault(tenant, Account(weight))
        return account

    def _forget_idle(self) -> None:
        """Forget the idle tenants that were served least: they are raised to the others when they come back."""
        idle = sorted((account.served_s, tenant) for tenant, account in self._accounts.items() if not account.requests)
        for _, tenant in idle[: max(1, len(idle) // 2)]:
            self._changed.pop(self._accounts.pop(tenant), None)

    def _wait(self, account: Account) -> None:
        account.waiting += 1
        self._waiting += 1
        if account.waiting > 1:
            return
        others = [other.served_s for other in self._accounts.values() if other.waiting and other is not account]
        floor_s = min(others) if others else max(other.served_s for other in self._accounts.values())
        if floor_s > account.served_s:
            self._serve(account, account.weight * (floor_s - account.served_s))

    def _charge(self, account: Account, tracked: Tracked) -> None:
        if tracked.charged_s is not None:
            return
        tracked.charged_s = cost_s = tracked.index_s
        self._mean_s = cost_s if not self._mean_s else self._mean_s + COST_MEMORY * (cost_s - self._mean_s)
        self._serve(account, cost_s)
        wanted_s = max(QUANTUM_ANSWERS, self._waiting / MOVED_PER_ANSWER) * self._mean_s
        if not self._quantum_s or not 1.0 / QUANTUM_CHANGE < wanted_s / self._quantum_s < QUANTUM_CHANGE:
            self._quantum_s = wanted_s
            self._changed = dict.fromkeys(self._accounts.values())

    def _serve(self, account: Account, cost_s: float) -> None:
        account.served_s = max(0.0, account.served_s + cost_s / account.weight)
        self._changed[account] = None
        self._last_round = self._number(account)

    def _number(self, account: Account) -> int:
        """Return the round that an account has reached."""
        return int(min(account.served_s / self._quantum_s, LAST_ROUND)) if self._quantum_s > 0.0 else 0


def _cost_s(tracked: Tracked, prices: FairShares) -> float:
    """Return what a request has cost by now: the cost of `controller.policy.cost` for its real length."""
    tokens = tracked.count()
    held = tokens * (0.5 * tokens + tracked.prompt_tokens)
    computed = max(0, tracked.prompt_tokens - tracked.hit.tokens)
    return prices.kv_token_step_s * held + prices.slot_step_s * tokens + prices.prefill_token_s * computed
