"""Requests that no client should send, from a seeded generator."""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from service.requests import GenerationRequest

_FIELDS = sorted(GenerationRequest.model_fields)
_LENGTH = b"content-length"


@dataclass(frozen=True)
class Garbage:
    """One malformed request: ``breaks_http`` where no HTTP server could answer in order."""

    kind: str
    body: bytes
    headers: dict[bytes, bytes] = field(default_factory=dict)
    breaks_http: bool = False

    @property
    def stays(self) -> bool:
        """Whether the connection is kept for more."""
        return self.headers.get(b"connection") == b"keep-alive"

    def encode(self) -> bytes:
        """The whole request, as it goes into the socket."""
        headers = {
            b"host": b"127.0.0.1",
            b"content-type": b"application/json",
            _LENGTH: str(len(self.body)).encode(),
            b"connection": b"close",
        } | self.headers
        if b"transfer-encoding" in headers:
            del headers[_LENGTH]
        head = b"".join(name + b": " + value + b"\r\n" for name, value in headers.items())
        return b"POST /v1/images/generations HTTP/1.1\r\n" + head + b"\r\n" + self.body


def stream(seed: int) -> Iterator[Garbage]:
    """Garbage without end, all kinds in turn; the same for the same seed."""
    draw = random.Random(seed)
    while True:
        for make in _KINDS:
            yield make(draw)


def _good() -> dict[str, object]:
    return {"prompt": "a koala", "n": 1, "seed": 7}


def _truncated(draw: random.Random) -> Garbage:
    text = json.dumps(_good()).encode()
    return Garbage("truncated JSON", text[: draw.randrange(len(text))])


def _wrong_type(draw: random.Random) -> Garbage:
    name = draw.choice(_FIELDS)
    values: list[object] = [[], {}, [1], {"a": 1}, [None], [[["x"]]], {"prompt": "a"}]
    return Garbage("wrong type", json.dumps(_good() | {name: draw.choice(values)}).encode())


def _huge_number(draw: random.Random) -> Garbage:
    numeric = ["n", "seed", "num_inference_steps", "guidance_scale", "output_compression"]
    digits = draw.choice([20, 400, 5000])
    number = draw.choice(["-", ""]) + "9" * digits + draw.choice(["", "e999", ".5e400"])
    body = f'{{"prompt": "a", "{draw.choice(numeric)}": {number}}}'
    return Garbage("huge number", body.encode())


def _no_number(draw: random.Random) -> Garbage:
    value = draw.choice(["NaN", "Infinity", "-Infinity", "1e999", "0x10", "01", "+1", ".5", "1_0"])
    name = draw.choice(["n", "seed", "guidance_scale", "deadline_seconds"])
    return Garbage("no number", f'{{"prompt": "a", "{name}": {value}}}'.encode())


def _nested(draw: random.Random) -> Garbage:
    depth = draw.choice([50, 1000, 20_000])
    opening, closing = draw.choice([("[", "]"), ('{"a":', "}")])
    inner = opening * depth + "1" + closing * depth
    return Garbage("deep nesting", f'{{"prompt": {inner}}}'.encode())


def _duplicate(draw: random.Random) -> Garbage:
    # The last one counts, so it has to be the bad one.
    name = draw.choice(["n", "seed", "size"])
    return Garbage("duplicate keys", f'{{"prompt": "a", "{name}": 1, "{name}": []}}'.encode())


def _bad_unicode(draw: random.Random) -> Garbage:
    junk = draw.choice([b"\xff", b"\xc3(", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\xaf"])
    return Garbage("invalid UTF-8", b'{"prompt": "a' + junk * draw.randint(1, 9) + b'"}')


def _surrogate(draw: random.Random) -> Garbage:
    name = draw.choice(["prompt", "negative_prompt", "user", "model", "\\ud800"])
    return Garbage(
        "lone surrogate", f'{{"prompt": "a", "{name}": "x\\ud8{draw.randrange(16)}0"}}'.encode()
    )


def _control(draw: random.Random) -> Garbage:
    character = chr(draw.choice([0, 1, 7, 8, 11, 27, 31]))
    return Garbage("control character", json.dumps(_good() | {"prompt": f"a{character}"}).encode())


def _not_an_object(draw: random.Random) -> Garbage:
    body = draw.choice(
        [b"", b"[]", b"null", b"1", b'"prompt"', b"true", b"  ", b"\x00", b"\xef\xbb\xbf{}"]
    )
    return Garbage("no object", body)


def _media_type(draw: random.Random) -> Garbage:
    value = draw.choice(
        [
            b"",
            b"text/plain",
            b"multipart/form-data; boundary=x",
            b"application/xml",
            b"json",
            b"application/x-www-form-urlencoded",
            b"application/json+x",
            b"\xff\xfe",
            b"*/*",
        ]
    )
    return Garbage("wrong media type", json.dumps(_good()).encode(), {b"content-type": value})


def _oversized(draw: random.Random) -> Garbage:
    size = draw.choice([131_073, 200_000, 1_000_000])
    text = draw.choice([b" " * size, b'{"prompt": "' + b"a" * size + b'"}', b"[" * size])
    return Garbage("oversized", text)


def _oversized_chunks(draw: random.Random) -> Garbage:
    chunk = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    body = chunk * draw.randint(5, 9) + b"0\r\n\r\n"
    return Garbage("oversized chunks", body, {b"transfer-encoding": b"chunked"})


def _lying_chunks(draw: random.Random) -> Garbage:
    body = draw.choice(
        [
            b"zz\r\n{}\r\n",
            b"-5\r\n{}\r\n0\r\n\r\n",
            b"FFFFFFFFFFFFFFFFFFFFF\r\n{}",
            b"2{}0",
            b"1\r\n{}\r\n0\r\n\r\n",
        ]
    )
    return Garbage("lying chunks", body, {b"transfer-encoding": b"chunked"}, breaks_http=True)


def _lying_length(draw: random.Random) -> Garbage:
    value = draw.choice(
        [b"-1", b"1e3", b"abc", b"1, 2", b"99999999999999999999999999", b"+5", b"0x10"]
    )
    return Garbage("lying length", b"{}", {_LENGTH: value}, breaks_http=True)


def _huge_header(draw: random.Random) -> Garbage:
    headers = draw.choice(
        [
            {b"x-junk": b"a" * 70_000},
            {b"prefer": b"," * 69_000},
            {b"x-%d" % i: b"b" * 100 for i in range(900)},
        ]
    )
    return Garbage("huge header", json.dumps(_good()).encode(), headers, breaks_http=True)


def _broken_header(draw: random.Random) -> Garbage:
    headers = draw.choice([{b"bad name": b"1"}, {b"": b"1"}, {b"x": b"a\x00b"}, {b"x\xff": b"1"}])
    return Garbage("broken header", json.dumps(_good()).encode(), headers, breaks_http=True)


def _pipelined(draw: random.Random) -> Garbage:
    # An order that is refused, and what looks like another request right behind it.
    junk = bytes(draw.randrange(256) for _ in range(draw.randint(1, 200)))
    behind = draw.choice(
        [junk, b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\n\r\n" + junk, b"PRI * HTTP/2.0\r\n\r\n"]
    )
    return Garbage(
        "pipelined garbage", b"[]" + behind, {_LENGTH: b"2", b"connection": b"keep-alive"}
    )


def _unknown_field(draw: random.Random) -> Garbage:
    name = "".join(draw.choice("abcdef_.$[]'\"\\ é") for _ in range(draw.randint(1, 300)))
    return Garbage("unknown field", json.dumps(_good() | {f"{name}!": 1}).encode())


_KINDS: list[Callable[[random.Random], Garbage]] = [
    _truncated,
    _wrong_type,
    _huge_number,
    _no_number,
    _nested,
    _duplicate,
    _bad_unicode,
    _surrogate,
    _control,
    _not_an_object,
    _media_type,
    _oversized,
    _oversized_chunks,
    _lying_chunks,
    _lying_length,
    _huge_header,
    _broken_header,
    _pipelined,
    _unknown_field,
]
