"""What a docker-archive says about the images in it."""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from llm_replicas.errors import UsageError

# Kept with an image on the node; its value is the digest of the image's configuration, which covers all
# content.
LABEL = "llm-replicas/config-digest"


@dataclass(frozen=True)
class ArchivedImage:
    """An image in an archive: its names and the digest of its configuration."""

    names: tuple[str, ...]
    digest: str


def read_archive(path: Path) -> ArchivedImage:
    """Return the one image of a docker-archive."""
    try:
        with tarfile.open(path) as archive:
            member = archive.extractfile("manifest.json")
            manifest = json.load(member) if member else []
    except (OSError, KeyError, ValueError, tarfile.TarError) as error:
        raise UsageError(
            f"{path} is no docker-archive ({error}); make one with: buildah push IMAGE docker-archive:FILE:NAME"
        ) from error
    if len(manifest) != 1 or not manifest[0].get("RepoTags"):
        raise UsageError(f"{path} holds {len(manifest)} images or one without a name; accepted: one named image")
    digest = Path(manifest[0]["Config"]).name.removesuffix(".json")
    return ArchivedImage(tuple(manifest[0]["RepoTags"]), digest)
