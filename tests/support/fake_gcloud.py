"""A stand-in for `gcloud` that keeps its state in the folder $CLOUD. Slices are folders: what is
sent there lies there, and what is run there is run there, by bash.

    CLOUD/calls           one JSON list of words per call
    CLOUD/plan.json       what comes of the next requests for a slice: a list, one entry each, used
                          up from the front. "quota": refused. Else the states that the request goes
                          through, one per look; it stays at the last. None left: ACTIVE.
    CLOUD/queued/NAME     JSON: {"states": [left to come, the first one is now], "type", "flags"}
    CLOUD/vms/NAME/       a slice: state (READY, PREEMPTED, ...), and a home directory per worker,
                          w0, w1, ...
    CLOUD/bucket/         objects, by their names
    CLOUD/bucket_down     while it is there, the bucket answers nothing
    CLOUD/unreachable     names of workers, such as tpu-0/w1, to which no connection comes about
    CLOUD/deaf            so many of the next ssh commands reach nobody

Types are `v6e-N`, with four chips a worker. The programs of a worker: $CLOUD/bin before PATH,
where `curl` answers for the metadata server.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

CLOUD = Path(os.environ.get("CLOUD", "."))


def main(words: list[str]) -> int:
    with open(CLOUD / "calls", "a") as file:
        file.write(json.dumps(words) + "\n")
    after: list[str] = []
    if "--" in words:
        words, after = words[: words.index("--")], words[words.index("--") + 1 :]
    flags = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    plain = [word for word in words if not word.startswith("--")]
    if plain[0] != "storage" and flags.get("--zone") != "my-zone1":
        return error("INVALID_ARGUMENT: no such zone")
    if plain[0] == "storage" and (CLOUD / "bucket_down").exists():
        return error("HTTPError 503: the service is unavailable")
    match plain:
        case ["compute", "tpus", "queued-resources", "create", name]:
            return create(name, flags)
        case ["compute", "tpus", "queued-resources", "describe", name]:
            return describe_request(name, flags["--format"])
        case ["compute", "tpus", "queued-resources", "delete", name]:
            return delete_request(name, flags)
        case ["compute", "tpus", "tpu-vm", "describe", name]:
            if flags["--format"] != "value(state)":
                return error("unknown format")
            vm = CLOUD / "vms" / name
            return (
                say((vm / "state").read_text())
                if vm.exists()
                else error(f"NOT_FOUND: Resource '{name}' was not found")
            )
        case ["compute", "tpus", "tpu-vm", "delete", name]:
            return delete_vm(name)
        case ["compute", "tpus", "tpu-vm", "ssh", name]:
            return ssh(name, flags, after)
        case ["compute", "tpus", "tpu-vm", "scp", *paths]:
            return scp(paths, flags)
        case ["storage", "cat", url]:
            return say(stored(url).read_text(), "") if stored(url).is_file() else no_objects(url)
        case ["storage", "ls", url]:
            if not stored(url).exists():
                return no_objects(url)
            return say(
                "\n".join(
                    f"{url}{path.name}{'/' if path.is_dir() else ''}"
                    for path in sorted(stored(url).iterdir())
                )
            )
        case ["storage", "cp", *sources, target]:
            place(target).parent.mkdir(parents=True, exist_ok=True)
            for source in sources:
                if not place(source).is_file():
                    return no_objects(source)
                shutil.copy(place(source), place(target))
            return 0
        case ["storage", "rm", url]:
            shutil.rmtree(stored(url))
            return 0
        case ["storage", "rsync", source, target]:
            return rsync(place(source), place(target), flags)
    return error(f"no such command: {words}")


def say(text: str, end: str = "\n") -> int:
    print(text, end=end)
    return 0


def error(text: str) -> int:
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    return 1


def no_objects(url: str) -> int:
    return error(f"The following URLs matched no objects or files:\n{url}")


# ---- slices


def create(name: str, flags: dict[str, str]) -> int:
    plan = json.loads((CLOUD / "plan.json").read_text()) if (CLOUD / "plan.json").exists() else []
    states = plan.pop(0) if plan else ["ACTIVE"]
    (CLOUD / "plan.json").write_text(json.dumps(plan))
    if states == "quota":
        return error(
            "RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPreemptiblePerProjectPerZoneForTPUAPI' has been"
            " exceeded."
        )
    request = CLOUD / "queued" / name
    if request.exists() or (CLOUD / "vms" / name).exists():
        return error(f"ALREADY_EXISTS: Resource '{name}' already exists")
    if not {"--node-id", "--accelerator-type", "--runtime-version"} <= set(flags):
        return error("Must be specified: --node-id, --accelerator-type, --runtime-version")
    request.parent.mkdir(exist_ok=True)
    request.write_text(
        json.dumps(
            {
                "states": states,
                "type": flags["--accelerator-type"],
                "node": flags["--node-id"],
                "flags": flags,
            }
        )
    )
    return 0


def describe_request(name: str, form: str) -> int:
    path = CLOUD / "queued" / name
    if not path.exists():
        return error(f"NOT_FOUND: Resource '{name}' was not found")
    if form != "value(state.state)":
        return error("unknown format")
    request = json.loads(path.read_text())
    now = request["states"][0]
    if now == "ACTIVE" and not request.get("made"):
        make_vm(request["node"], workers=max(1, int(request["type"].split("-")[1]) // 4))
        request["made"] = True
    if len(request["states"]) > 1:
        request["states"].pop(0)
    path.write_text(json.dumps(request))
    return say(now)


def delete_request(name: str, flags: dict[str, str]) -> int:
    path = CLOUD / "queued" / name
    if not path.exists():
        return error(f"NOT_FOUND: Resource '{name}' was not found")
    node = json.loads(path.read_text())["node"]
    if (CLOUD / "vms" / node).exists():
        if "--force" not in flags:
            return error("FAILED_PRECONDITION: the queued resource still has a node; use --force")
        delete_vm(node)
    path.unlink()
    return 0


def make_vm(name: str, workers: int) -> None:
    for number in range(workers):
        (CLOUD / "vms" / name / f"w{number}").mkdir(parents=True)
    (CLOUD / "vms" / name / "state").write_text("READY")


def delete_vm(name: str) -> int:
    vm = CLOUD / "vms" / name
    if not vm.exists():
        return error(f"NOT_FOUND: Resource '{name}' was not found")
    wipe(vm, [vm])
    return 0


def end_processes(folder: Path, number: int) -> None:
    """A signal to all that was started in a slice, or in one of its workers."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                environment = (entry / "environ").read_bytes()
                if f"\0FAKE_VM={folder}".encode() in b"\0" + environment:
                    os.kill(int(entry.name), number)
            except OSError:
                continue


def wipe(vm: Path, folders: list[Path]) -> None:
    """Folders of a slice, whose processes end with them (which takes them a moment)."""
    while any(folder.exists() for folder in folders):
        end_processes(vm, signal.SIGKILL)
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def preempt(name: str, *, grace: float = 0.0) -> None:
    """Take a slice away: with notice (SIGTERM, and some seconds in which it still counts as
    usable), or without."""
    vm, request = CLOUD / "vms" / name, CLOUD / "queued" / name
    if grace:
        end_processes(vm, signal.SIGTERM)
        time.sleep(grace)
    request.write_text(json.dumps(json.loads(request.read_text()) | {"states": ["SUSPENDED"]}))
    (vm / "state").write_text("PREEMPTED")
    wipe(vm, list(vm.glob("w*")))


# ---- connections


def workers_of(name: str, flags: dict[str, str]) -> list[Path]:
    vm = CLOUD / "vms" / name
    if not vm.exists():
        raise SystemExit(error(f"NOT_FOUND: Resource '{name}' was not found"))
    if (vm / "state").read_text() != "READY":
        raise SystemExit(
            error(f'TPU {name} is in state "{(vm / "state").read_text()}", expected READY')
        )
    which = flags.get("--worker", "0")
    homes = sorted(vm.glob("w*"), key=lambda path: int(path.name[1:]))
    return homes if which == "all" else [homes[int(which)]]


def lost(home: Path) -> bool:
    path = CLOUD / "unreachable"
    if path.exists() and f"{home.parent.name}/{home.name}" in path.read_text().split():
        print("ssh: connect to host: Connection timed out", file=sys.stderr)
        return True
    return False


def ssh(name: str, flags: dict[str, str], after: list[str]) -> int:
    deaf = CLOUD / "deaf"
    if deaf.exists() and int(deaf.read_text()):
        deaf.write_text(str(int(deaf.read_text()) - 1))
        return 255
    homes, children, codes = workers_of(name, flags), [], []
    for number, home in enumerate(homes):
        if lost(home):
            codes.append(255)
            continue
        environment = os.environ | {
            "HOME": str(home),
            "FAKE_VM": str(home),
            "FAKE_WORKER": home.name[1:],
            "FAKE_WORKERS": str(len(list(home.parent.glob("w*")))),
            "PATH": f"{CLOUD / 'bin'}:{os.environ['PATH']}",
        }
        output = None
        if "--output-directory" in flags:
            output = open(Path(flags["--output-directory"]) / f"{number}.log", "w")  # noqa: SIM115  closed with this process
        children.append(
            subprocess.Popen(
                ["sh", "-c", flags["--command"]],
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        )
    codes += [child.wait() for child in children]
    return next((code for code in codes if code), 0)


def scp(paths: list[str], flags: dict[str, str]) -> int:
    remote = next(path.split(":")[0] for path in paths if re.match(r"[a-z][a-z0-9-]*:", path))
    for home in workers_of(remote, flags):
        if lost(home):
            return 255
        there = [
            home / path.split(":", 1)[1] if path.startswith(f"{remote}:") else Path(path)
            for path in paths
        ]
        for source in there[:-1]:
            shutil.copy(source, there[-1])
    return 0


# ---- the bucket


def stored(url: str) -> Path:
    assert url.startswith("gs://"), url
    return CLOUD / "bucket" / url.removeprefix("gs://")


def place(path: str) -> Path:
    return stored(path) if path.startswith("gs://") else Path(path)


def rsync(source: Path, target: Path, flags: dict[str, str]) -> int:
    exclude = re.compile(flags["--exclude"]) if "--exclude" in flags else None
    if "--recursive" not in flags or not source.is_dir():
        return error(f"{source}: no such folder, or not recursive")
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and not (exclude and exclude.match(str(name))):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
