"""How this host reaches package registries, handed to image builds and kept out of the images.

A host behind a mirror, a proxy or its own certificate authority has told apt and pip so already.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from llm_replicas.cluster.buildah import Mount

_CERTIFICATE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_CERTIFICATE_TARGET = "/etc/ssl/build-host.pem"
_PIP_SETTINGS = {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries"}
_APT_SETTINGS = re.compile(r"Acquire::(https?::|Check-|Retries|ForceIPv)[^\s]*\s+\"[^\"]+\";")


def apt_settings() -> str:
    """Return the host's apt lines about reaching mirrors: proxies, certificates, clock checks."""
    try:
        dump = subprocess.run(["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return "\n".join(line for line in dump.stdout.splitlines() if _APT_SETTINGS.fullmatch(line))


def certificates() -> Path | None:
    """Return the certificate bundle that the environment names, if it names one."""
    for variable in _CERTIFICATE_VARIABLES:
        named = os.environ.get(variable)
        if named and Path(named).is_file():
            return Path(named)
    return None


def pip_settings() -> str:
    """Return the content of a pip.conf that reaches the same index as pip does here."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False)
    settings = {}
    for line in listing.stdout.splitlines():
        # Later lines win; the environment's (":env:.") come last, as they do in pip.
        name, equals, value = line.partition("=")
        option = name.rpartition(".")[2]
        if equals and option in _PIP_SETTINGS:
            settings[option] = value.strip("'\"")
    if certificates() is not None:
        settings["cert"] = _CERTIFICATE_TARGET
    return "\n".join(["[global]", *(f"{option} = {value}" for option, value in sorted(settings.items())), ""])


def build_mounts(scratch: Path) -> list[Mount]:
    """Write these settings under `scratch` and return what a build mounts of them."""
    mounts = []
    bundle = certificates()
    if bundle is not None:
        mounts.append(Mount(bundle, _CERTIFICATE_TARGET))
    pip = scratch / "pip.conf"
    pip.touch(mode=0o600)  # an index address may hold a password
    pip.write_text(pip_settings())
    mounts.append(Mount(pip, "/etc/pip.conf"))
    lines = [
        re.sub(r'"[^"]+"', f'"{_CERTIFICATE_TARGET}"', line) if "::CAInfo" in line else line
        for line in apt_settings().splitlines()
    ]
    if lines:
        apt = scratch / "apt.conf"
        apt.touch(mode=0o600)
        apt.write_text("\n".join([*lines, ""]))
        mounts.append(Mount(apt, "/etc/apt/apt.conf.d/99build-host"))
    return mounts
