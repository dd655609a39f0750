"""Images: every pod names fixed bytes."""

from __future__ import annotations

from collections.abc import Iterator

from llm_replicas.chart.objects import Objects, containers, name_of, workloads
from llm_replicas.chart.rules.base import Finding, Rule

FLOATING_TAGS = {"", "latest", "main", "master", "nightly", "stable"}


def no_floating_image(objects: Objects) -> Iterator[Finding]:
    """An image is named by digest or by a tag that does not move."""
    for workload in workloads(objects):
        for found in containers(workload):
            image = str(found["image"])
            if "@sha256:" in image:
                continue
            tag = image.rpartition("/")[2].partition(":")[2]
            if tag in FLOATING_TAGS:
                yield Finding(
                    "no-floating-image",
                    f"{name_of(workload)} {found['name']}",
                    f"image {image} may change between two pods; name a version tag or a digest",
                )


IMAGE_RULES: tuple[Rule, ...] = (no_floating_image,)
