"""All configuration, read once at the edge and passed in; nothing deeper reads the environment."""

import hashlib
import re
import tempfile
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import ByteSize, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from koala import webhook_secret
from koala.apikeys import parse_keys
from koala.rates import parse_rate_limit

# A Unix socket's address holds 108 bytes on Linux, 104 on macOS.
_LONGEST_SOCKET_PATH = 100
_HOST = re.compile(r"(\*\.)?[\w-]+(\.[\w-]+)*", re.ASCII)
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?", re.ASCII)
_ORIGIN = re.compile(r"https?://[^/\s?#@]+")


class Settings(BaseSettings):
    """Settings of every part, from ``KOALA_*`` environment variables.

    Raises:
        pydantic.ValidationError: A value is malformed; the message names the variable.
    """

    model_config = SettingsConfigDict(
        env_prefix="KOALA_",
        env_ignore_empty=True,
        frozen=True,
        validate_default=True,
        # What is malformed may be a secret.
        hide_input_in_errors=True,
    )

    redis_url: str | None = Field(
        None,
        description="Redis or Valkey to use. Unset: the server embedded in `koala up`, "
        "on a socket in the data directory.",
    )
    redis_password: SecretStr | None = Field(
        None,
        description="Password of that Redis, as it is; instead of one in the URL, where some "
        "characters need to be percent-encoded.",
    )
    queue: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,64}$")] = Field(
        "koala", description="Name of the RQ queue; parts that share it work together."
    )
    data_dir: Path = Field(
        Path(".koala"), description="Folder for the embedded server's data and for images."
    )
    image_store: str | None = Field(
        None,
        description="Where images are stored: a folder or any fsspec URL. "
        "Unset: `images` in the data directory.",
    )
    model: str = Field(
        "koala-demo",
        min_length=1,
        description="Model to serve: a name from `koala models`, a hub id, or a diffusers folder.",
    )
    model_revision: str | None = Field(
        None,
        description="Commit, tag or branch of the hub repository. Unset: the catalogue's; "
        "else what was downloaded; else the newest.",
    )
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Number format of the model: `auto`, `float32`, `bfloat16` or `float16`. "
        "`auto`: float16 on CUDA, float32 on a CPU.",
    )
    channels_last: bool = Field(
        False, description="Keep the weights of convolutions channels last."
    )
    fuse_qkv: bool = Field(
        False, description="Fuse the projections of the U-Net's attention; excludes LoRAs."
    )
    compile: bool = Field(
        False,
        description="Compile the U-Net for the model's native size, at start, for each number of "
        "rows that is measured: about a minute each. On a CPU it needs `g++`.",
    )
    preview_decoder: Path | None = Field(
        None,
        description="Folder of a tiny decoder (TAESD, diffusers' `AutoencoderTiny`) for sharper "
        "previews. Unset: a linear map draws them.",
    )
    lora_dir: Path | None = Field(
        None,
        description="Folder of LoRAs, `NAME.safetensors` each, that requests may name; "
        "every part needs it. Unset: none.",
    )
    safety_checker: Path | None = Field(
        None,
        description="Folder of a classifier that withholds unsafe images: diffusers' safety "
        "checker, or a transformers image classifier with a label `nsfw` or `unsafe`. "
        "Unset: nothing is checked.",
    )
    torch_threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="CPU threads of a worker's torch. Unset: `OMP_NUM_THREADS`, else as many as "
        "affinity and cgroup quota let it use.",
    )
    max_batch_rows: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Most rows of one U-Net call; an image with guidance takes two. "
        "Unset: as many as pay, which each worker measures.",
    )
    target_step_ms: float | None = Field(
        None,
        gt=0,
        description="Milliseconds that one denoising step of a batch should take at the most: "
        "smaller batches, quicker images, less throughput. Unset: throughput decides.",
    )
    vram_budget: ByteSize | None = Field(
        None,
        gt=0,
        description="Most GPU memory of a worker, weights included, such as `6GiB`. "
        "Unset: what is free, less a reserve.",
    )
    residency: Literal["auto", "all", "offload_text", "tile_vae", "fp8_unet"] = Field(
        "auto",
        description="What stays on the device: `all`; `offload_text`: text encoders come to "
        "encode; `tile_vae`: and images are decoded by tiles; `fp8_unet`: and the U-Net's "
        "weights have 8 bits. `auto`: the first that fits, by `koala plan`; on a CPU `all`.",
    )
    idle_unload_seconds: float | None = Field(
        None,
        ge=1,
        description="A worker without a job for so long frees its weights, and loads them again "
        "for the next one. Unset: never.",
    )
    workers: int = Field(1, ge=1, le=64, description="Workers that `koala up` starts.")
    host: str = Field("127.0.0.1", description="Address the gateway listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the gateway; 0 picks a free one.")
    metrics_host: str = Field(
        "127.0.0.1", description="Address that a worker's `/metrics` listens on."
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of the first worker's `/metrics`, the next ones count up; "
        "0 picks free ones.",
    )
    api_keys: SecretStr | None = Field(
        None,
        description="API keys, separated by commas, each `secret` or `name:secret`; every one may "
        "do everything. For less see `koala keys`.",
    )
    api_keys_file: Path | None = Field(
        None, description="File of hashed API keys, as `koala keys` writes it."
    )
    allow_anonymous: bool = Field(
        False, description="Listen on other than loopback addresses although nobody logs in."
    )
    private_images: bool = Field(
        False,
        description="Ask for an API key at image URLs too. Otherwise whoever has the URL, which "
        "nobody can guess, gets the image.",
    )
    cors_origins: str | None = Field(
        None,
        description="Origins whose pages may call the API from a browser, separated by commas; "
        "`*`: all. Unset: none.",
    )
    allowed_hosts: str | None = Field(
        None,
        description="More names under which a gateway without API keys is reached, separated by "
        "commas; `*.example.com`: all below it, `*`: any. Unset: localhost, IP addresses, and the "
        "host of `KOALA_PUBLIC_URL`.",
    )
    public_url: str | None = Field(
        None,
        pattern=r"^https?://[^/].*$",
        description="Base of the image URLs. Unset: the address the request came to.",
    )
    sync_timeout: float = Field(
        300.0, gt=0, le=3600, description="Seconds a call waits for its image before it gets a 504."
    )
    max_queued: int = Field(
        256, ge=1, le=100_000, description="Most jobs waiting in the queue; past it, a 429."
    )
    max_queued_per_key: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="Most jobs of one API key waiting in the queue; past it, a 429. "
        "Unset: as many as fit.",
    )
    rate_limit: str | None = Field(
        None,
        description="Generation requests that each API key may send, such as `60/minute` or "
        "`5/second;1000/day`; past it, a 429. Unset: no limit.",
    )
    max_prompt_chars: int = Field(
        4000, ge=1, le=32_000, description="Longest prompt and negative prompt, in characters."
    )
    max_body_bytes: int = Field(
        131_072, ge=1024, le=16_777_216, description="Largest request body, in bytes."
    )
    max_connections: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Most connections of a gateway; past it the one that has been silent longest "
        "is closed. Unset: as many as the limit of open files allows, at most 10,000.",
    )
    new_connection_seconds: float = Field(
        20.0, gt=0, le=3600, description="Seconds that a new connection may be silent."
    )
    header_seconds: float = Field(
        20.0,
        gt=0,
        le=3600,
        description="Seconds that a request's headers may take from their first byte.",
    )
    body_seconds: float = Field(
        30.0,
        gt=0,
        le=3600,
        description="Seconds that a request's body may take, and one more for each KiB of it.",
    )
    unread_seconds: float = Field(
        60.0,
        gt=0,
        le=3600,
        description="Seconds after which a client that takes less than 1 KiB a second of an answer "
        "that waits for it is cut off.",
    )
    keep_alive_seconds: int = Field(
        75, ge=1, le=3600, description="Seconds that a connection is kept for another request."
    )
    job_timeout: int = Field(
        600, ge=1, le=86_400, description="Seconds a job may run before it fails."
    )
    result_ttl: int = Field(
        86_400, ge=1, le=31_536_000, description="Seconds that a job and its result are kept."
    )
    webhook_secret: SecretStr | None = Field(
        None,
        description="Secret that signs webhooks, `whsec_` and base64 of 24 to 64 bytes; of "
        "several, separated by commas, each signs. "
        "Unset: requests with a `webhook_url` are refused.",
    )
    webhook_allow_private: bool = Field(
        False, description="Deliver webhooks to private and loopback addresses too."
    )
    lease_seconds: float = Field(
        8.0,
        ge=0.5,
        le=300,
        description="A job whose worker gave no sign for so long goes back to the queue.",
    )
    heartbeat_seconds: float = Field(
        2.0, ge=0.1, le=60, description="Seconds between two signs of life of a worker."
    )
    max_attempts: int = Field(
        3, ge=1, le=100, description="A job that killed so many workers fails instead of rerunning."
    )
    drain_seconds: float = Field(
        7.0, ge=0, le=3600, description="Seconds a stopping worker may spend on jobs in flight."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line to write."
    )
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="`auto`: console on a terminal, JSON elsewhere."
    )

    @field_validator("api_keys")
    @classmethod
    def _api_keys_are_well_formed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            parse_keys(value.get_secret_value())
        return value

    @field_validator("data_dir")
    @classmethod
    def _data_dir_leads_somewhere(cls, value: Path) -> Path:
        try:
            value.resolve()
        except (RuntimeError, OSError):
            raise ValueError("it is a link that leads to itself") from None
        return value

    @field_validator("device")
    @classmethod
    def _device_is_one(cls, value: str) -> str:
        if not _DEVICE.fullmatch(value):
            raise ValueError(f"{value[:80]!r} is not a device: use auto, cpu, cuda or cuda:N")
        return value

    @field_validator("rate_limit")
    @classmethod
    def _rate_limit_is_well_formed(cls, value: str | None) -> str | None:
        if value is not None:
            parse_rate_limit(value)
        return value

    @field_validator("cors_origins")
    @classmethod
    def _origins_are_well_formed(cls, value: str | None) -> str | None:
        for origin in [] if value in (None, "*") else _split(value):
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin[:80]!r} is no origin: write it as https://example.com, with the "
                    "port if there is one and nothing behind it"
                )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts_are_well_formed(cls, value: str | None) -> str | None:
        for host in _split(value):
            if host != "*" and not _HOST.fullmatch(host):
                raise ValueError(
                    f"{host[:80]!r} is no host: write it as koala.example.com or *.example.com, "
                    "without a port"
                )
        return value

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> Self:
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                "KOALA_LEASE_SECONDS must be at least twice KOALA_HEARTBEAT_SECONDS, or one late "
                "heartbeat loses a job"
            )
        return self

    @model_validator(mode="after")
    def _password_is_for_a_server(self) -> Self:
        if self.redis_password is not None and self.redis_url is None:
            raise ValueError(
                "KOALA_REDIS_PASSWORD needs KOALA_REDIS_URL: the embedded server has no password"
            )
        return self

    @model_validator(mode="after")
    def _lora_layers_are_there(self) -> Self:
        if self.fuse_qkv and self.lora_dir is not None:
            raise ValueError(
                "KOALA_FUSE_QKV and KOALA_LORA_DIR exclude each other: fused projections are not "
                "the layers that LoRAs are made for"
            )
        return self

    @field_validator("webhook_secret")
    @classmethod
    def _webhook_secret_is_well_formed(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            webhook_secret.split(value.get_secret_value())
        return value

    @property
    def webhook_secrets(self) -> list[str]:
        """The secrets that sign webhooks; without any there are no webhooks."""
        if self.webhook_secret is None:
            return []
        return webhook_secret.split(self.webhook_secret.get_secret_value())

    @property
    def resolved_redis_url(self) -> str:
        """The server to connect to: ``redis_url`` with its password, or the embedded server.

        Raises:
            ValueError: ``redis_url`` is no URL.
        """
        if self.redis_url is None:
            return f"unix://{quote(str(self.embedded_socket))}"
        if self.redis_password is None:
            return self.redis_url
        parts = urlsplit(self.redis_url)
        login, _, address = parts.netloc.rpartition("@")
        user = login.partition(":")[0]
        password = quote(self.redis_password.get_secret_value(), safe="")
        return urlunsplit(parts._replace(netloc=f"{user}:{password}@{address}"))

    @property
    def embedded_socket(self) -> Path:
        """The embedded server's socket; in the temporary folder where the path gets too long."""
        path = self.data_dir.resolve() / "valkey.sock"
        if len(str(path)) <= _LONGEST_SOCKET_PATH:
            return path
        digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"koala-{digest}" / "valkey.sock"

    @property
    def resolved_image_store(self) -> str:
        """``image_store``, or the folder ``images`` in the data directory."""
        return self.image_store or str(self.data_dir.resolve() / "images")

    @property
    def event_ttl(self) -> int:
        """Seconds that a job's events are kept: while it can run, and while its result is kept."""
        return self.result_ttl + self.job_timeout

    @property
    def allowed_origins(self) -> list[str]:
        """The origins whose pages may call the API; ``*`` stands for all."""
        return _split(self.cors_origins)

    @property
    def host_names(self) -> list[str]:
        """The Hosts that ``allowed_hosts`` adds, in lower case; ``*`` stands for all."""
        return [host.lower() for host in _split(self.allowed_hosts)]

    @property
    def login_required(self) -> bool:
        """Whether API keys are configured: even a file without any key left lets nobody in."""
        return self.api_keys is not None or self.api_keys_file is not None

    @property
    def exposure(self) -> str | None:
        """Why a gateway must not start like this, if so: strangers would reach it unasked."""
        if self.listens_on_loopback or self.login_required or self.allow_anonymous:
            return None
        return (
            f"KOALA_HOST {self.host} is reachable from other machines and nobody has to log in: "
            "set KOALA_API_KEYS or KOALA_API_KEYS_FILE, or KOALA_ALLOW_ANONYMOUS=1 if that is "
            "what you want."
        )

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def _split(text: str | None) -> list[str]:
    return [] if text is None else [part.strip() for part in text.split(",")]
