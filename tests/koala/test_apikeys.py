"""API keys: the environment's list, the file, and the command that writes it."""

import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from koala.apikeys import ApiKey, Scope, digest, new_secret, parse_keys
from koala.commands.doctor import _keys
from koala.commands.up import _environment
from koala.keyfile import KeyFileError, add_key, read_keys, remove_key
from koala.rates import parse_rate_limit
from koala.settings import Settings

SECRET = "a-secret-of-26-characters-"


def keys(*arguments: str, file: Path | None) -> subprocess.CompletedProcess[str]:
    where = {} if file is None else {"KOALA_API_KEYS_FILE": str(file)}
    return subprocess.run(
        [sys.executable, "-m", "koala", "keys", *arguments],
        env={**os.environ, "COLUMNS": "200", **where},
        capture_output=True,
        text=True,
        timeout=300,
    )


def key(name: str, secret: str = SECRET) -> ApiKey:
    return ApiKey(name=name, sha256=digest(secret), scopes=(Scope.READ,))


def test_a_secret_is_new_each_time_and_holds_256_bits() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith("koala_")
    # 32 bytes in base64.
    assert len(first) == len("koala_") + 43


def test_keys_of_the_environment_may_do_everything_and_keep_no_secret() -> None:
    named, unnamed = parse_keys(f"alice:{SECRET}, {SECRET}2")
    assert named.name == "alice"
    assert set(named.scopes) == set(Scope)
    assert named.priority == "high"
    assert SECRET not in repr(named) + named.model_dump_json()
    assert named.sha256 not in repr(named)
    assert unnamed.name == f"key-{unnamed.sha256[:8]}"


def test_a_key_without_a_name_owns_the_same_jobs_wherever_it_stands() -> None:
    [alone] = parse_keys(SECRET)
    assert parse_keys(f"other:{SECRET}2,{SECRET}")[1].name == alone.name


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"{SECRET},", "entry 2 is empty"),
        (f",{SECRET}", "entry 1 is empty"),
        ("alice:", "entry 1 is empty"),
        ("fifteen-letters", "has 15 characters"),
        (f"{SECRET},alice:short", "secret of entry 2 has 5 characters"),
        (f"alice:{SECRET},alice:{SECRET}2", "two keys are called 'alice'"),
        (f"alice:{SECRET},bob:{SECRET}", "'alice' and 'bob' have the same secret"),
        (f"{SECRET},{SECRET}", "two keys are called"),
        (f"al ice:{SECRET}", "name of entry 1"),
        (f":{SECRET}", "name of entry 1"),
        (f"alice:{SECRET} {SECRET}", "without spaces"),
        (f"alice:{SECRET}ü", "ASCII"),
    ],
)
def test_a_malformed_list_of_keys_is_refused_by_name_and_place(
    monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    monkeypatch.setenv("KOALA_API_KEYS", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    [error] = caught.value.errors()
    assert error["loc"] == ("api_keys",)
    assert says in error["msg"]
    assert SECRET not in str(caught.value)


def test_a_malformed_list_of_keys_is_one_line_that_names_the_variable_and_no_secret() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "koala", "serve"],
        env={**os.environ, "KOALA_API_KEYS": f"{SECRET},{SECRET}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "KOALA_API_KEYS" in line
    assert SECRET not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KOALA_RATE_LIMIT", "60"),
        ("KOALA_RATE_LIMIT", "0/minute"),
        ("KOALA_RATE_LIMIT", "60/fortnight"),
        ("KOALA_RATE_LIMIT", "9999999/minute"),
        ("KOALA_CORS_ORIGINS", "example.com"),
        ("KOALA_CORS_ORIGINS", "https://example.com/"),
        ("KOALA_CORS_ORIGINS", "https://example.com,*"),
        ("KOALA_CORS_ORIGINS", "https://example.com,"),
    ],
)
def test_a_malformed_limit_or_origin_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert caught.value.errors()[0]["loc"] == (name.removeprefix("KOALA_").lower(),)


def test_a_rate_limit_may_have_several_windows() -> None:
    items = parse_rate_limit("5/second; 1000 per 2 days")
    assert [(item.amount, item.get_expiry()) for item in items] == [(5, 1), (1000, 2 * 86_400)]


def test_koala_up_hands_secrets_to_its_parts_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    settings = Settings(api_keys=SECRET, api_keys_file=file, webhook_secret="whsec_" + "A" * 32)
    env = _environment(settings)
    assert env["KOALA_API_KEYS"] == SECRET
    assert env["KOALA_WEBHOOK_SECRET"] == "whsec_" + "A" * 32
    assert env["KOALA_API_KEYS_FILE"] == str(file)


def test_the_command_shows_a_secret_once_and_stores_its_digest_alone(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "keys.json"
    options = ["--scope", "generate", "--scope", "read", "--priority", "low"]
    options += ["--rate-limit", "60/minute", "--max-queued", "5"]
    done = keys("add", "alice", *options, file=file)
    assert done.returncode == 0, done.stderr
    secret = done.stdout.strip()
    assert secret.startswith("koala_")
    [stored] = read_keys(file)
    assert stored.sha256 == digest(secret)
    assert (stored.scopes, stored.priority) == (("generate", "read"), "low")
    assert (stored.rate_limit, stored.max_queued) == ("60/minute", 5)
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(file.parent) == [file.name]

    listed = keys("list", file=file).stdout
    assert "alice" in listed
    assert "generate, read" in listed
    assert stored.sha256 not in listed


def test_the_command_removes_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    for name in ("alice", "bob"):
        assert keys("add", name, file=file).returncode == 0
    assert keys("remove", "alice", file=file).returncode == 0
    assert [key.name for key in read_keys(file)] == ["bob"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_key_gets_the_scopes_for_drawing_unless_others_are_named(tmp_path: Path) -> None:
    keys("add", "alice", file=tmp_path / "keys.json")
    [stored] = read_keys(tmp_path / "keys.json")
    assert stored.scopes == ("generate", "read")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["add", "alice"], "'alice' already"),
        (["add", "no spaces"], "NAME must be"),
        (["add", "bob", "--rate-limit", "often"], "--rate-limit: 'often'"),
        (["add", "bob", "--max-queued", "0"], "--max-queued"),
        (["remove", "bob"], "no key called 'bob'"),
    ],
)
def test_what_the_command_refuses_is_one_clear_line_and_changes_nothing(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    file = tmp_path / "keys.json"
    add_key(file, key("alice"))
    before = file.read_bytes()
    done = keys(*arguments, file=file)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert says in line
    assert done.stdout == ""
    assert file.read_bytes() == before


def test_without_a_file_the_command_says_how_to_name_one() -> None:
    done = keys("list", file=None)
    assert done.returncode == 1
    assert "KOALA_API_KEYS_FILE" in done.stderr
    assert "--file" in done.stderr


def test_commands_at_the_same_time_lose_nobodys_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    names = [f"key{i}" for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: add_key(file, key(name, secret=name)), names))
    assert sorted(stored.name for stored in read_keys(file)) == sorted(names)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"version": 2, "keys": []}', "version"),
        (json.dumps({"keys": [{"name": "alice", "sha256": SECRET}]}), "keys.0"),
        (json.dumps({"keys": [key("a").model_dump(mode="json")] * 2}), "called 'a'"),
    ],
)
def test_a_broken_file_is_refused_by_name_without_its_content(
    tmp_path: Path, content: str, says: str
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(KeyFileError, match=says) as caught:
        read_keys(file)
    assert str(file) in str(caught.value)
    assert SECRET not in str(caught.value)
    with pytest.raises(KeyFileError):
        remove_key(file, "alice")
    assert file.read_text() == content


def test_a_file_that_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="koala keys add"):
        read_keys(tmp_path / "none.json")


def test_a_link_that_leads_to_itself_is_refused_by_name(tmp_path: Path) -> None:
    link = tmp_path / "loop.json"
    link.symlink_to(link)
    with pytest.raises(KeyFileError, match=r"loop\.json: Too many levels of symbolic links"):
        add_key(link, key("alice"))
    assert link.is_symlink()


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    link, file = tmp_path / "link.json", tmp_path / "keys.json"
    link.symlink_to(file)
    add_key(link, key("alice"))
    assert link.is_symlink()
    assert [stored.name for stored in read_keys(file)] == ["alice"]


@pytest.mark.parametrize(
    ("content", "verdict", "says"),
    [
        ({"keys": [key("alice").model_dump(mode="json")]}, "ok", "1"),
        ({"keys": []}, "note", "nobody gets in"),
        ({"keys": 3}, "fail", "KOALA_API_KEYS_FILE"),
        (None, "note", "whoever reaches the gateway may use it"),
    ],
)
def test_doctor_says_who_gets_in(tmp_path: Path, content: object, verdict: str, says: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps(content))
    [finding] = _keys(Settings(api_keys_file=None if content is None else file))
    assert finding.verdict == verdict
    assert says in finding.text


def test_doctor_fails_where_strangers_would_get_in() -> None:
    [finding] = _keys(Settings(host="0.0.0.0"))
    assert finding.verdict == "fail"
    assert "KOALA_ALLOW_ANONYMOUS" in finding.text
