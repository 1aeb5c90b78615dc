"""Which of the broker's environment variables its workers get: a list, because adapters and libraries see them all.

A worker needs paths, its language, and the settings of compilers and libraries. It needs no token and no key, however
they came to be in the broker's environment: cloud keys, `HF_TOKEN`, passwords of proxies. `[broker] environment` in
config.toml names what else an adapter needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from zoo.config.schema import BrokerConfig

GIVEN = (
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "LC_*", "TZ", "TZDIR", "TMPDIR", "XDG_*",
    "LD_*", "GLIBC_TUNABLES", "MALLOC_*", "PYTHON*", "VIRTUAL_ENV", "CONDA_PREFIX", "FONTCONFIG_*",
    "CUDA_*", "NVIDIA_*", "CUDNN_*", "CUBLAS_*", "NCCL_*", "TORCH*", "PYTORCH_*", "TRITON_*",
    "OMP_*", "MKL_*", "KMP_*", "GOMP_*", "OPENBLAS_*", "BLIS_*", "NUMEXPR_*", "ONEDNN_*", "DNNL_*", "ORT_*",
    "HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "YOLO_*", "OPENCV_*", "MPLCONFIGDIR", "ZOO_*",
)  # fmt: skip
NETWORK = (  # for `auto_pull`: how the network is reached
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "HF_TOKEN",
)  # fmt: skip
SECRET = ("TOKEN", "SECRET", "PASSWORD", "PASSWD", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "PRIVATE_KEY")


def of_workers(broker: BrokerConfig) -> dict[str, str]:
    """What of this process's environment is handed on."""
    named = [*broker.environment, *(NETWORK if broker.auto_pull else ())]
    return {
        key: value
        for key, value in os.environ.items()
        if _matches(key, named) or (_matches(key, GIVEN) and not any(word in key.upper() for word in SECRET))
    }


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(key.startswith(p[:-1]) if p.endswith("*") else key == p for p in patterns)
