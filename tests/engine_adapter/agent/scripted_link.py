"""The controller's end of an agent's link, played by a test, and facts to send over it."""

from engine_adapter.agent.agent import Agent, AgentLimits, View
from store.records import (
    Arrived,
    ControllerMessage,
    EngineMessage,
    EngineRules,
    Facts,
    Finished,
    Hello,
    IndexTable,
    Settings,
    Welcome,
)

HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="m",
    engine="simulated",
    engine_version="1",
    kv_blocks=100,
    block_size_tokens=16,
    max_num_seqs=8,
    token_budget=512,
    max_model_len_tokens=4096,
    prefix_caching=False,
    started_s=0.0,
)
SETTINGS = Settings(revision=1, mode="on", lease_s=2.0, rules=EngineRules())
PRIOR = IndexTable(request_id=None, attained_tokens=(0,), index_s=(1.0,), growth_tokens=(0.0,))
VIEW = View(kv_blocks_used=0, waiting=0, running=0, queue=(), running_requests=())


class ScriptedLink:
    """The controller's end, played by a test: keeps what is sent, hands out what it is given."""

    bad_frames = 0

    def __init__(self) -> None:
        self.sent: list[EngineMessage] = []
        self.inbox: list[ControllerMessage] = []
        self.up = True

    def send(self, message: EngineMessage) -> bool:
        if self.up:
            self.sent.append(message)
        return self.up

    def receive(self) -> list[ControllerMessage]:
        inbox, self.inbox = self.inbox, []
        return inbox

    def close(self) -> None:
        self.up = False

    def facts(self) -> list[int]:
        return [message.batch for message in self.sent if isinstance(message, Facts)]


def arrived(request_id: str) -> Arrived:
    return Arrived(
        request_id=request_id, arrival_s=0.0, prompt_tokens=1, token_ids=bytes(4), max_tokens=9, temperature=1.0
    )


def finished(request_id: str) -> Finished:
    return Finished(
        request_id=request_id,
        time_s=1.0,
        reason="stop",
        arrival_s=0.0,
        prompt_tokens=1,
        output_tokens=3,
        max_tokens=9,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
    )


def connected(limits: AgentLimits | None = None) -> tuple[Agent, ScriptedLink]:
    link = ScriptedLink()
    agent = Agent(hello=HELLO, link=link, limits=limits)
    agent.poll(0.0)
    link.inbox = [Welcome(controller_id="c", durable_batch=0), SETTINGS, PRIOR]
    agent.poll(0.1)
    return agent, link
