"""The prompt families of the built-in synthetic workload: what people ask, and how long answers to it tend to be.

Invented for this project. The shapes follow what public traces show: answers of one task are roughly log-normal,
some tasks have two kinds of answers, all have a heavy tail, and the wording determines part of the length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from engine_adapter.workloads.length_distributions import Lengths, LogNormal, Mixture, Pareto

Choices = tuple[str, ...]
Scaled = tuple[tuple[str, float], ...]
"""Phrases, each with the factor by which it changes the answer's length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of request."""

    name: str
    weight: float
    """Share of the traffic, relative to the others'."""
    system: str
    """What the application puts in front of each of its requests."""
    templates: Choices
    """With ``{slot}`` places, filled from the common vocabulary, ``{size}`` and ``{body}``."""
    answers: Lengths
    """Answer length at size factor 1 and a body of usual length."""
    sizes: Scaled = (("", 1.0),)
    body_sentences: tuple[int, int] = (0, 0)
    """Least and most sentences of the text that the request is about."""
    sentence: str = "{subject} {verb} {object}{ending}. "
    body_exponent: float = 0.0
    """Answers grow with the body's length to this power."""
    max_tokens: tuple[int, ...] = (1024, 2048, 4096)
    """Limits that this application's clients set; each is as likely as the others."""
    drift: float = 1.0
    """Factor on the answers' length after the drift."""
    extra: dict[str, Choices] = field(default_factory=dict)
    """Vocabulary of this family alone."""


def _tailed(median_tokens: float, sigma: float, *, tail: float = 0.03) -> Mixture:
    """A log-normal body, and a share of answers that go on and on."""
    return Mixture(
        parts=(LogNormal(median_tokens=median_tokens, sigma=sigma), Pareto(least_tokens=2 * median_tokens, alpha=1.6)),
        weights=(1.0 - tail, tail),
    )


def _bimodal(short: float, long: float, long_share: float) -> Mixture:
    """Either a short answer or a long one."""
    return Mixture(
        parts=(LogNormal(median_tokens=short, sigma=0.35), LogNormal(median_tokens=long, sigma=0.4)),
        weights=(1.0 - long_share, long_share),
    )


FAMILIES: tuple[Family, ...] = (
    Family(
        name="chat",
        weight=2.0,
        system="You are a friendly assistant. Answer naturally and keep the conversation going.",
        templates=(
            "Hi! I have been thinking about {topic} lately. {size}What would you tell a {person} about it?",
            "My {person} keeps asking me about {topic} and I never know what to say. {size}Any ideas?",
            "hey, quick one: is {topic} worth it for a {person} in {place}? {size}",
        ),
        answers=_tailed(150, 0.7),
        sizes=(("", 1.0), ("Just one line please. ", 0.25), ("Tell me everything you know. ", 2.5)),
        drift=2.0,
    ),
    Family(
        name="summary",
        weight=1.5,
        system="You summarise documents faithfully. Never add facts that the document does not hold.",
        templates=(
            "Summarise the following report {size}.\n\n{body}",
            "Document about {topic}:\n\n{body}\n\nGive a summary {size}.",
        ),
        answers=_tailed(110, 0.35),
        sizes=(("in one sentence", 0.3), ("in three bullet points", 0.8), ("in two paragraphs", 1.8), ("briefly", 0.6)),
        body_sentences=(8, 60),
        body_exponent=0.3,
        max_tokens=(512, 1024),
    ),
    Family(
        name="code",
        weight=1.5,
        system="You are an expert programmer. Reply with working code in one block, then explain it.",
        templates=(
            "Write a {language} {artifact} that {task}. {size}",
            "In {language}, how do I write a {artifact} which {task}? {size}",
            "Refactor this {language} {artifact} so that it {task}:\n\n{body}\n{size}",
        ),
        answers=_tailed(380, 0.6, tail=0.05),
        sizes=(("", 1.0), ("Only the code, no explanation.", 0.6), ("Add unit tests and documentation.", 2.2)),
        body_sentences=(3, 30),
        sentence="    {name} = {call}({name}, {number})\n",
        max_tokens=(2048, 4096, 8192),
        drift=1.6,
        extra={
            "language": ("Python", "Rust", "Go", "TypeScript", "C++", "Java", "SQL"),
            "name": ("result", "rows", "total", "index", "value", "buffer", "node"),
            "call": ("merge", "lookup", "parse_line", "append", "max", "visit", "checksum"),
            "artifact": ("function", "class", "command line tool", "service", "script"),
            "task": (
                "parses a log file and counts errors by hour",
                "merges overlapping intervals",
                "keeps the most recently used entries of a cache",
                "reads a CSV file and writes it to a database",
                "retries a request with exponential backoff",
                "finds the shortest path in a weighted graph",
            ),
        },
    ),
    Family(
        name="translation",
        weight=1.0,
        system="You are a professional translator. Return the translation only.",
        templates=("Translate into {tongue}:\n\n{body}", "{tongue} translation of this text, {size}:\n\n{body}"),
        answers=LogNormal(median_tokens=190, sigma=0.12),
        sizes=(("formal tone", 1.05), ("plain words", 0.95)),
        body_sentences=(2, 40),
        body_exponent=1.0,
        extra={"tongue": ("French", "German", "Japanese", "Portuguese", "Polish", "Hindi")},
    ),
    Family(
        name="classification",
        weight=1.5,
        system="Classify the customer's message. Reply with exactly one label.",
        templates=(
            "Labels: positive, negative, neutral.\nMessage: {body}\nLabel:",
            "Is this spam? yes or no.\n\n{body}",
        ),
        answers=Mixture(
            parts=(LogNormal(median_tokens=3, sigma=0.3), LogNormal(median_tokens=45, sigma=0.5)), weights=(0.93, 0.07)
        ),
        body_sentences=(1, 6),
        max_tokens=(16, 64, 256),
    ),
    Family(
        name="extraction",
        weight=1.0,
        system="Extract structured data. Reply with JSON that matches the schema, nothing else.",
        templates=(
            "Extract every {entity} from the text as a JSON list.\n\n{body}",
            "Text:\n{body}\n\nList each {entity}.",
        ),
        answers=_tailed(80, 0.4),
        body_sentences=(4, 50),
        body_exponent=0.8,
        extra={"entity": ("person", "date", "amount of money", "company", "product", "address")},
    ),
    Family(
        name="story",
        weight=0.7,
        system="You are a novelist with a warm and vivid style.",
        templates=(
            "Write {size} about a {person} who discovers {topic} in {place}.",
            "Tell me {size} set in {place}. It should involve a {person} and {topic}.",
        ),
        answers=_tailed(750, 0.35, tail=0.06),
        sizes=(("a short story", 1.0), ("a scene of 200 words", 0.4), ("a long chapter", 2.4), ("a poem", 0.3)),
        max_tokens=(2048, 4096, 8192),
        drift=0.6,
    ),
    Family(
        name="maths",
        weight=1.2,
        system="Solve the problem step by step and give the result on the last line.",
        templates=(
            "A {person} buys {number} boxes of {number} pens and gives away {number}. How many are left? {size}",
            "A train leaves {place} at {number} km/h, another follows {number} minutes later. When do they meet? {size}",
            "Prove that the sum of the first {number} odd numbers is a square. {size}",
        ),
        answers=_bimodal(110, 620, 0.3),
        sizes=(("", 1.0), ("Only the result.", 0.2), ("Check your answer in a second way.", 1.7)),
        drift=2.5,
    ),
    Family(
        name="tool",
        weight=1.5,
        system="You can call the functions search(query), book(place, date) and mail(to, text). Reply with one JSON call.",
        templates=(
            "Find {topic} near {place} for {number} people.",
            "Book a table in {place} on the {number}th for my {person}.",
            "Mail my {person} that the meeting about {topic} moves to {number} o'clock.",
        ),
        answers=_bimodal(32, 210, 0.06),
        max_tokens=(256, 512),
    ),
    Family(
        name="question",
        weight=1.5,
        system="Answer the question from general knowledge. Say so when you do not know.",
        templates=(
            "What is {topic}? {size}",
            "Why is {place} known for {topic}? {size}",
            "Who first wrote about {topic}? {size}",
        ),
        answers=_bimodal(40, 230, 0.35),
        sizes=(("", 1.0), ("One word.", 0.1), ("Explain it to a child.", 1.3), ("Give sources.", 1.6)),
    ),
    Family(
        name="retrieval",
        weight=1.2,
        system="Answer only from the passages below and cite them by number.",
        templates=("Passages:\n{body}\n\nQuestion: what do they say about {topic}? {size}",),
        answers=_tailed(130, 0.6),
        sizes=(("", 1.0), ("Answer yes or no.", 0.15), ("Compare all passages.", 2.2)),
        body_sentences=(25, 110),
        max_tokens=(512, 1024, 2048),
    ),
    Family(
        name="email",
        weight=1.0,
        system="You draft business mail in the user's name.",
        templates=(
            "Draft {size} to my {person} about {topic}.",
            "Reply to this mail with {size}:\n\n{body}",
        ),
        answers=_tailed(170, 0.35),
        sizes=(("a polite mail", 1.0), ("two lines", 0.3), ("a detailed proposal", 3.0)),
        body_sentences=(2, 10),
    ),
    Family(
        name="reasoning",
        weight=0.6,
        system="Think as long as you need before you answer.",
        templates=(
            "{number} guests sit at a round table; no {person} may sit beside another. How many ways are there?",
            "Plan a route through {place} that sees {topic} with {number} changes at most.",
            "Three people in {place} each say that another lies. Who tells the truth?",
        ),
        answers=_tailed(1300, 0.8, tail=0.1),
        max_tokens=(4096, 8192),
        drift=1.3,
    ),
    Family(
        name="rewrite",
        weight=0.8,
        system="Improve the user's text. Keep its meaning.",
        templates=("Correct the grammar:\n\n{body}", "Make this text {size}:\n\n{body}"),
        answers=LogNormal(median_tokens=170, sigma=0.2),
        sizes=(("more formal", 1.1), ("half as long", 0.5), ("friendlier", 1.0)),
        body_sentences=(2, 25),
        body_exponent=1.0,
    ),
)

COMMON: dict[str, Choices] = {
    "topic": (
        "solar panels", "old railway stations", "sourdough bread", "quantum computers", "the housing market",
        "migratory birds", "night shifts", "medieval maps", "chess openings", "coral reefs", "remote work",
        "electric bicycles", "rare stamps", "volcanic soil", "jazz festivals", "tax reform", "deep sea fishing",
    ),
    "person": (
        "teacher", "neighbour", "nurse", "student", "colleague", "manager", "grandfather", "beginner", "farmer",
        "designer", "customer", "sailor",
    ),
    "place": (
        "Lisbon", "Osaka", "the Alps", "Nairobi", "a small harbour town", "Montreal", "Krakow", "the north of Chile",
        "Edinburgh", "Jakarta",
    ),
    "number": ("3", "4", "7", "12", "15", "18", "24", "36", "60", "120"),
    "subject": (
        "The committee", "Our supplier", "A recent survey", "The city council", "Every second household",
        "The new director", "An independent audit", "The research group", "Most of the passengers", "The local press",
    ),
    "verb": (
        "reported", "confirmed", "rejected", "measured", "described", "underestimated", "published", "questioned",
        "welcomed", "predicted",
    ),
    "object": (
        "a sharp rise in costs", "the results of the first quarter", "a delay of several weeks",
        "new rules for shared spaces", "the effect of cheaper transport", "two competing proposals",
        "an unexpected shortage", "steady growth in demand", "a change of plan", "the findings on {topic}",
    ),
    "ending": (
        "", " in {place}", " after {number} months", ", according to a {person}", " despite earlier doubts",
        " for the {number}th time", ", which surprised every {person} in {place}",
    ),
}  # fmt: skip
"""Vocabulary that all families share."""
