"""TorchScript archives that are small enough to keep."""

from __future__ import annotations

import io
import zipfile


def compressed(content: bytes) -> bytes:
    """Compress an archive, and leave out the members that only help to debug; PyTorch still loads it."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if not name.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(name), old.read(name), zipfile.ZIP_DEFLATED)
    return out.getvalue()
