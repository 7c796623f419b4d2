"""What is handed to operators: container files, the systemd unit, the wheelhouse. Read, not run: an image needs a
container engine.
"""

import configparser
import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGING = ROOT / "packaging"
DOCKERFILES = sorted(PACKAGING.glob("Dockerfile.*"))


def instructions(file):
    """Return (INSTRUCTION, rest) of a Dockerfile, comments gone and lines joined."""
    text = re.sub(
        r"\\\n", " ", "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    )
    return [
        (line.split(None, 1)[0].upper(), line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()
    ]


def unit(name):
    """Return a unit's sections; a key that stands twice keeps all its values."""
    sections, section = {}, None
    for line in (PACKAGING / name).read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, value = line.split("=", 1)
            section.setdefault(key, []).append(value)
    return sections


def serve_command(words):
    """Check that the words after ``reid`` are a command line that ``reid serve`` takes."""
    from typer.main import get_command

    from reid.cli import app

    command = get_command(app).commands.get("serve")
    if command is None:
        pytest.skip("this version has no reid serve")
    known = {option for parameter in command.params for option in parameter.opts}
    assert words[0] == "serve"
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_a_container_file_is_small_pinned_and_not_root(file):
    steps = instructions(file)
    stages = [rest for step, rest in steps if step == "FROM"]
    assert len(stages) == 2, "what installs stays behind"
    assert all(stage.split()[0] == "${BASE}" for stage in stages), "both stages have the same Python"
    base = dict(rest.split("=", 1) for step, rest in steps if step == "ARG")["BASE"]
    assert re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-slim-\w+", base), "a full version, not a moving tag"
    assert not [rest for step, rest in steps if step == "ADD"], "ADD fetches and unpacks; COPY does not"
    assert not [
        rest for step, rest in steps if step == "RUN" and re.search(r"curl|wget|https?://|apt-get|chmod 777|sudo", rest)
    ]
    users = [rest for step, rest in steps if step == "USER"]
    assert users == ["10001:10001"]
    assert steps.index(("USER", users[0])) > max(
        number for number, (step, _) in enumerate(steps) if step in ("RUN", "COPY")
    )
    (health,) = [rest for step, rest in steps if step == "HEALTHCHECK"]
    assert "/livez" in health
    (command,) = [json.loads(rest) for step, rest in steps if step == "CMD"]
    assert [json.loads(rest) for step, rest in steps if step == "ENTRYPOINT"] == [["reid"]]
    port = command[command.index("--port") + 1]
    assert ("EXPOSE", port) in steps
    assert f"127.0.0.1:{port}/livez" in health
    serve_command(command)


def test_both_container_files_differ_only_where_they_must():
    cpu, gpu = (instructions(file) for file in DOCKERFILES)
    assert [step for step, _ in cpu] == [step for step, _ in gpu]
    pairs = [(step, first, second) for (step, first), (_, second) in zip(cpu, gpu, strict=True) if first != second]
    assert {step for step, _, _ in pairs} == {"RUN", "ENV", "HEALTHCHECK", "CMD"}
    ((first, second),) = [(first, second) for step, first, second in pairs if step == "RUN"]
    assert second.startswith(f"{first} && ln -s "), "TensorRT's libraries at one place, whichever Python the base has"


def test_the_compose_example_gives_as_little_as_it_can():
    (service,) = yaml.safe_load((PACKAGING / "compose.yaml").read_text())["services"].values()
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"][0].startswith("/tmp:")
    assert service["user"] == "10001:10001"
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert {"mem_limit", "pids_limit"} <= set(service)
    assert not {"privileged", "cap_add", "network_mode", "pid"} & set(service)
    written = {volume.split(":")[1] for volume in service["volumes"] if not volume.endswith(":ro")}
    assert written == {"/var/lib/reid", "/var/cache/reid"}, "what the container file makes for its user"


def test_the_unit_may_write_two_folders_and_gain_nothing():
    found = {key: values for section in unit("reid.service").values() for key, values in section.items()}
    for key, value in {
        "User": "reid",
        "ProtectSystem": "strict",
        "ReadWritePaths": "/var/lib/reid /var/cache/reid",
        "NoNewPrivileges": "yes",
        "CapabilityBoundingSet": "",
        "MemoryMax": "2G",
        "Restart": "on-failure",
        "ProtectHome": "yes",
        "PrivateTmp": "yes",
        "LimitCORE": "0",
    }.items():
        assert found[key] == [value]
    assert found["ExecStart"][0].startswith("/opt/reid/bin/reid ")
    serve_command(found["ExecStart"][0].split()[1:])
    gpu = unit("reid-gpu.conf")["Service"]
    assert gpu["ExecStart"][0] == "", "a drop-in empties the list before it sets it"
    serve_command(gpu["ExecStart"][1].split()[1:])
    assert configparser.ConfigParser(strict=False, interpolation=None).read(PACKAGING / "reid.service")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_understands_the_unit(tmp_path):
    text = (PACKAGING / "reid.service").read_text()
    here = re.sub(
        r"^(User|Group)=reid$", r"\1=daemon", text.replace("/opt/reid/bin/reid", "/bin/true"), flags=re.MULTILINE
    )
    (tmp_path / "reid.service").write_text(here)
    (tmp_path / "reid.service.d").mkdir()
    gpu = (PACKAGING / "reid-gpu.conf").read_text().replace("/opt/reid/bin/reid", "/bin/true")
    (tmp_path / "reid.service.d" / "gpu.conf").write_text(gpu)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "reid.service")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("script", "shell"), [("wheelhouse.sh", "bash"), ("install.sh", "sh")])
def test_the_scripts_parse_and_can_be_run(script, shell):
    assert subprocess.run([shell, "-n", str(PACKAGING / script)], timeout=10).returncode == 0
    assert (PACKAGING / script).stat().st_mode & 0o111


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [({"PLATFORM": "riscv64"}, 2, "x86_64 or aarch64"), ({"OUT": "docs"}, 1, "is there already")],
)
def test_the_wheelhouse_refuses_before_it_begins(settings, code, said):
    done = subprocess.run(
        ["bash", str(PACKAGING / "wheelhouse.sh")],
        env={"PATH": "/usr/bin:/bin", **settings},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert said in done.stderr


@pytest.mark.nightly
def test_a_wheelhouse_installs_without_network(tmp_path):
    """Made here, carried elsewhere, installed with no network at all where the kernel lets us take it away; a flipped
    byte is noticed before.
    """
    made = subprocess.run(
        ["make", "wheelhouse", f"PYTHON={sys.executable}", f"OUT={tmp_path / 'wheelhouse'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if made.returncode and "No matching distribution" in made.stderr:
        pytest.skip("the package index can't be reached")
    assert made.returncode == 0, made.stderr
    carried = tmp_path / "carried"
    with tarfile.open(tmp_path / "house.tar", "w") as archive:
        archive.add(tmp_path / "wheelhouse", "carried")
    with tarfile.open(tmp_path / "house.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    alone = ["unshare", "--map-root-user", "--net"]
    prefix = (
        alone
        if shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True).returncode == 0
        else []
    )
    environment = {"PATH": "/usr/bin:/bin:/usr/local/bin", "PYTHON": sys.executable, "HOME": str(tmp_path)}
    install = [*prefix, "sh", str(carried / "install.sh")]
    done = subprocess.run(
        [*install, str(tmp_path / "reid")], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        subprocess.run(
            [str(tmp_path / "reid" / "bin" / "python"), "-c", "import torch"], capture_output=True
        ).returncode
        == 1
    )
    (tmp_path / "reid" / "lib").rglob("deploy/__init__.py").__next__().write_text("replaced = True\n")
    done = subprocess.run(
        [*install, str(tmp_path / "reid")], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "replaced = True" not in next((tmp_path / "reid" / "lib").rglob("deploy/__init__.py")).read_text(), (
        "an update of the same number counts"
    )
    wheel = next(carried.glob("typer-*.whl"))
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 1
    wheel.write_bytes(data)
    done = subprocess.run(
        [*install, str(tmp_path / "again")], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert not (tmp_path / "again").exists()
