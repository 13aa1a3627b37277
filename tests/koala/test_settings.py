from pathlib import Path

import pytest
import redis
from pydantic import SecretStr, ValidationError

from koala.settings import Settings

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_table_names_every_setting_with_its_default_and_description() -> None:
    rows = {
        cells[0].strip("` "): cells[1:]
        for line in README.read_text().splitlines()
        if line.startswith("| `KOALA_")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }
    fields = {f"KOALA_{name.upper()}": field for name, field in Settings.model_fields.items()}
    assert rows.keys() == fields.keys()
    for name, field in fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        assert rows[name] == [default, field.description], name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KOALA_PORT", "70000"),
        ("KOALA_QUEUE", "has spaces"),
        ("KOALA_MAX_QUEUED", "0"),
        ("KOALA_LOG_LEVEL", "loud"),
        ("KOALA_PUBLIC_URL", "koala.example"),
        ("KOALA_ALLOWED_HOSTS", "https://koala.example"),
        ("KOALA_ALLOWED_HOSTS", "koala.example:8000"),
        ("KOALA_ALLOWED_HOSTS", "a.*.example"),
        ("KOALA_ALLOWED_HOSTS", "koala.example,"),
        ("KOALA_DTYPE", "int8"),
        ("KOALA_DEVICE", "gpu"),
        ("KOALA_DEVICE", "cuda:"),
        ("KOALA_CHANNELS_LAST", "perhaps"),
        ("KOALA_FUSE_QKV", "perhaps"),
        ("KOALA_COMPILE", "perhaps"),
    ],
)
def test_a_malformed_value_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert caught.value.errors()[0]["loc"] == (name.removeprefix("KOALA_").lower(),)


def test_a_data_folder_that_is_a_link_to_itself_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.setenv("KOALA_DATA_DIR", str(tmp_path / "loop"))
    with pytest.raises(ValidationError, match="leads to itself"):
        Settings()


def test_a_lease_shorter_than_two_heartbeats_is_refused() -> None:
    with pytest.raises(ValidationError, match="KOALA_LEASE_SECONDS"):
        Settings(lease_seconds=3, heartbeat_seconds=2)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("gpu-box.example", False),
    ],
)
def test_loopback_addresses_are_told_from_reachable_ones(host: str, loopback: bool) -> None:
    assert Settings(host=host).listens_on_loopback is loopback


def test_a_deep_data_folder_still_gets_a_socket_path_that_fits(tmp_path: Path) -> None:
    shallow = Settings(data_dir=tmp_path)
    deep = Settings(data_dir=tmp_path / ("x" * 120))
    assert shallow.embedded_socket == tmp_path / "valkey.sock"
    assert len(str(deep.embedded_socket)) <= 100
    assert deep.embedded_socket != Settings(data_dir=tmp_path / ("y" * 120)).embedded_socket


def test_without_a_redis_url_the_embedded_server_is_meant(tmp_path: Path) -> None:
    assert Settings(data_dir=tmp_path).resolved_redis_url == f"unix://{tmp_path}/valkey.sock"
    assert Settings(redis_url="redis://db/3").resolved_redis_url == "redis://db/3"


@pytest.mark.parametrize(
    ("url", "resolved"),
    [
        ("redis://db:6379/0", "redis://:a%2Fb%40c%23%25@db:6379/0"),
        (
            "rediss://user:old@db/1?ssl_check_hostname=no",
            "rediss://user:a%2Fb%40c%23%25@db/1?ssl_check_hostname=no",
        ),
        ("redis://:old@[::1]:6379", "redis://:a%2Fb%40c%23%25@[::1]:6379"),
        ("unix:///run/redis.sock?db=2", "unix://:a%2Fb%40c%23%25@/run/redis.sock?db=2"),
    ],
)
def test_a_password_is_given_as_it_is_and_put_into_the_url(url: str, resolved: str) -> None:
    settings = Settings(redis_url=url, redis_password=SecretStr("a/b@c#%"))
    assert settings.resolved_redis_url == resolved
    client = redis.Redis.from_url(resolved)
    assert client.connection_pool.connection_kwargs["password"] == "a/b@c#%"


def test_a_password_without_a_server_of_its_own_is_refused() -> None:
    with pytest.raises(ValidationError, match="KOALA_REDIS_PASSWORD needs KOALA_REDIS_URL"):
        Settings(redis_password=SecretStr("secret"))
