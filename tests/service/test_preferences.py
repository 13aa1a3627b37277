import time

import pytest

from service.preferences import Preference, parse


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], Preference()),
        (["respond-async"], Preference(respond_async=True)),
        (["Respond-Async"], Preference(respond_async=True)),
        (["wait=5"], Preference(wait=5)),
        (['WAIT = "5"'], Preference(wait=5)),
        (["respond-async, wait=5"], Preference(respond_async=True, wait=5)),
        (["wait=5", "respond-async"], Preference(respond_async=True, wait=5)),
        (["wait=5;strict, handling=lenient;a=b ; c"], Preference(wait=5)),
        (["wait=1, wait=9"], Preference(wait=1)),
        (["wait=0"], Preference(wait=0)),
        (['foo="a, wait=9 \\" ", wait=2'], Preference(wait=2)),
        (['respond-async=""'], Preference(respond_async=True)),
        (["respond-async=no"], Preference()),
        (["wait"], Preference()),
        (["wait=-1"], Preference()),
        (["wait=1.5"], Preference()),
        (["wait=٣"], Preference()),
        (["@@@, , wait=3"], Preference(wait=3)),
        (["return=minimal"], Preference()),
    ],
)
def test_preferences_are_read_as_the_rfc_says(headers: list[str], expected: Preference) -> None:
    assert parse(headers) == expected


def test_a_hostile_header_costs_no_time() -> None:
    hostile = [
        ";" + " " * 60_000 + "\x01",
        "a" + " " * 60_000 + "\x01",
        'a="' * 20_000,
        "," * 60_000,
    ]
    began = time.perf_counter()
    parse(hostile)
    assert time.perf_counter() - began < 1
