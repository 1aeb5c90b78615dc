"""The Python interface, from its docstrings: directives that Sphinx's autodoc follows."""

from __future__ import annotations

CHAPTERS = {
    "Clients": ("Client", "Lease", "AsyncClient", "AsyncLease", "Frame"),
    "Results": (
        "Detections", "Keypoints", "Classification", "Action", "Embedding", "DepthMap", "Segmentation", "OcrText",
        "Quality", "Timings",
    ),
    "Enrichment": ("Enrichment", "Enriched"),
    "Configuration": ("load_config", "ZooConfig", "ModelConfig", "ModelPriority"),
    "Errors": ("ZooError",),
}  # fmt: skip
ADAPTERS = ("Adapter", "Spec", "Input")


def page() -> str:
    parts = []
    for title, names in CHAPTERS.items():
        parts += [f"## {title}", *(_directive("zoo", name) for name in names)]
    parts += ["## Adapters", *(_directive("workers.models.base", name) for name in ADAPTERS)]
    return "\n\n".join(parts)


def _directive(module: str, name: str) -> str:
    found = getattr(__import__(module, fromlist=[name]), name)
    kind = "autoclass" if isinstance(found, type) else "autofunction"
    return f"```{{eval-rst}}\n.. {kind}:: {module}.{name}\n{_members(kind)}```"


def _members(kind: str) -> str:
    return "   :members:\n   :inherited-members: Struct, Exception, int, object\n" if kind == "autoclass" else ""
