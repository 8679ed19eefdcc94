"""The agent accepts the examples under deploy/."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"


def objects() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes/agent.yaml").read_text())
    return {document["kind"]: document for document in documents}


def test_the_configuration_in_the_manifest_is_valid(tmp_path: Path) -> None:
    files = objects()["ConfigMap"]["data"]
    for name, text in files.items():
        # The manifest mounts them there.
        (tmp_path / name).write_text(text.replace("/etc/vouchd/", f"{tmp_path}/"))
    command = [sys.executable, "-m", "agent", "check", "-c", str(tmp_path / "agent.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(files) == {"agent.yaml", "entries.yaml"}


def test_the_manifest_grants_only_the_required_privileges() -> None:
    pod = objects()["DaemonSet"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    security = container["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["SYS_PTRACE"]}
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert pod["hostPID"], "callers in another PID namespace have no name for the kernel"
    [rule] = objects()["ClusterRole"]["rules"]
    assert rule["verbs"] == ["get"]
    written = {each["name"] for each in container["volumeMounts"] if not each.get("readOnly")}
    assert written == {"socket", "data"}
