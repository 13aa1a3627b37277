"""The Kubernetes manifests without a cluster: each pod's container, its probes, and its end.

What the overlay ``cpu`` sets, in the base's containers: image, environment, user, read-only root,
no capabilities, memory limit, and volumes in the place of the manifests' own.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from deploy.verify_compose.checkout import LONG, WAIT_SECONDS, eventually
from deploy.verify_compose.checks import expect, secret_in
from deploy.verify_compose.engine import Engine, Failed

_NETWORK: Final = "koala-pods"
_SECRETS: Final = {
    ("koala-redis", "address"): "redis:6379",
    ("koala-redis", "password"): 'p/a@s#s?w%o:r"d\\$',
}


def probes_and_drains(engine: Engine, folder: Path, images: dict[str, str], work: Path) -> str:
    """Start each container as its pod would, ask its probes, end it within its grace period."""
    base = folder / "deploy" / "kubernetes" / "base"
    config = _load(base / "config.yaml")[0]["data"] | {
        # What the overlay `cpu` replaces.
        "KOALA_MODEL": "koala-demo",
        "KOALA_DEVICE": "cpu",
        "KOALA_IMAGE_STORE": "/data/images",
        "KOALA_MAX_BATCH_ROWS": "4",
        "KOALA_TORCH_THREADS": "1",
    }
    pods = {name: _load(base / f"{name}.yaml")[0]["spec"]["template"]["spec"] for name in images}
    for volume in ("data", "keys"):
        (work / volume).mkdir(parents=True, exist_ok=True)
        (work / volume).chmod(0o777)
    engine.run("network", "create", _NETWORK)
    try:
        overlay = folder / "deploy" / "kubernetes" / "overlays" / "cpu"
        redis = _load(overlay / "redis.yaml")[0]["spec"]["template"]["spec"]
        _start(engine, "redis", redis, {}, ["--tmpfs", "/data:uid=999"], None)
        key = _make_key(engine, images["gateway"], work)
        mounts = ["--volume", f"{work / 'data'}:/data", "--volume", f"{work / 'keys'}:/keys:ro"]
        for name, pod in pods.items():
            _start(engine, name, pod, config, mounts, images[name])
        seen = [f"{name} started after {_probe(engine, name, pods[name]):.0f} s" for name in images]
        seen += _drain(engine, pods, key)
        return ", ".join(seen)
    finally:
        engine.run("rm", "--force", *(f"pod-{name}" for name in ("redis", *images)), check=False)
        engine.run("network", "rm", _NETWORK, check=False)


def _load(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def _start(
    engine: Engine,
    name: str,
    pod: dict[str, Any],
    config: dict[str, str],
    mounts: list[str],
    image: str | None,
) -> None:
    [container] = pod["containers"]
    values = dict(config)
    for entry in container["env"]:
        if "valueFrom" in entry:
            secret = entry["valueFrom"]["secretKeyRef"]
            values[entry["name"]] = _SECRETS[secret["name"], secret["key"]]
        else:
            # What Kubernetes does with $(NAME).
            value = entry["value"]
            for known, content in values.items():
                value = value.replace(f"$({known})", content)
            values[entry["name"]] = value
    context, inner = pod["securityContext"], container["securityContext"]
    expect(inner["readOnlyRootFilesystem"] and inner["capabilities"]["drop"] == ["ALL"], name)
    emptied = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    mounted = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
    tmpfs = [f"{mounted[volume]}:mode=1777" for volume in sorted(emptied)]
    command = container.get("command", [])
    engine.run(
        "run", "--detach", "--name", f"pod-{name}", "--network", _NETWORK, "--network-alias", name,
        "--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges",
        f"--user={context['runAsUser']}:{context['runAsGroup']}",
        f"--memory={container['resources']['limits']['memory'].removesuffix('i').lower()}",
        *(option for each in tmpfs for option in ("--tmpfs", each)),
        *(option for key, value in values.items() for option in ("--env", f"{key}={value}")),
        *mounts,
        *(["--entrypoint", command[0]] if command else []),
        image or container["image"], *command[1:], *container.get("args", []),
    )  # fmt: skip


def _make_key(engine: Engine, image: str, work: Path) -> str:
    made = engine.run(
        "run", "--rm", "--volume", f"{work / 'keys'}:/keys",
        "--env", "KOALA_API_KEYS_FILE=/keys/keys.json", image, "koala", "keys", "add", "pods",
    )  # fmt: skip
    return secret_in(made.stdout)


def _address(engine: Engine, name: str) -> str:
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return engine.inspect(f"pod-{name}", template)


def _probe(engine: Engine, name: str, pod: dict[str, Any]) -> float:
    [container] = pod["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    def passes(kind: str) -> bool:
        probe = container[kind]
        get = probe["httpGet"]
        url = f"http://{_address(engine, name)}:{ports[get['port']]}{get['path']}"
        # As the kubelet asks: by the pod's address, and any status from 200 to 399 will do.
        answer = httpx.get(url, timeout=probe.get("timeoutSeconds", 1), trust_env=False)
        return 200 <= answer.status_code < 400

    startup = container["startupProbe"]
    began = time.monotonic()
    limit = min(startup["periodSeconds"] * startup["failureThreshold"], WAIT_SECONDS)
    eventually(lambda: passes("startupProbe"), f"{name}: startup probe", limit)
    for kind in ("livenessProbe", "readinessProbe"):
        if kind in container:
            eventually(lambda kind=kind: passes(kind), f"{name}: {kind}", 10)  # type: ignore[misc]
    return time.monotonic() - began


def _drain(engine: Engine, pods: dict[str, Any], key: str) -> list[str]:
    """Delete the gateway with a client that waits, then the worker with that client's job."""
    body = {"prompt": "a koala", "n": 4, "num_inference_steps": LONG}
    url = f"http://{_address(engine, 'gateway')}:8000"
    headers = {"Authorization": f"Bearer {key}"}

    def draw() -> httpx.Response:
        return httpx.post(
            f"{url}/v1/images/generations", json=body, headers=headers, timeout=60, trust_env=False
        )

    def is_drawing() -> bool:
        jobs = httpx.get(f"{url}/v1/jobs", headers=headers, trust_env=False).json()["data"]
        return any(job["status"] == "in_progress" for job in jobs)

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(draw)
        eventually(is_drawing, "a job in progress")
        seen = [_delete(engine, name, pods[name]) for name in ("gateway", "worker")]
        answer = waiting.result()
    expect(answer.status_code in (200, 503), f"{answer.status_code} {answer.text[:200]}")
    return [*seen, f"the waiting client got a {answer.status_code}"]


def _delete(engine: Engine, name: str, pod: dict[str, Any]) -> str:
    [container] = pod["containers"]
    grace = pod["terminationGracePeriodSeconds"]
    began = time.monotonic()
    hook = container.get("lifecycle", {}).get("preStop")
    if hook is not None:
        engine.run("exec", f"pod-{name}", *hook["exec"]["command"])
    left = int(grace - (time.monotonic() - began))
    engine.run("stop", "--time", str(left), f"pod-{name}", timeout=grace + 30)
    took = time.monotonic() - began
    code = engine.inspect(f"pod-{name}", "{{.State.ExitCode}}")
    if code != "0" or took >= grace:
        raise Failed(f"{name}: exit code {code} after {took:.1f} of {grace} s")
    return f"{name} ended after {took:.1f} of {grace} s"
