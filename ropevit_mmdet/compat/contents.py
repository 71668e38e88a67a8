"""What a file is that is no checkpoint: by its first bytes, or the names in its archive."""

import re
import zipfile
from pathlib import Path

_BYTES = 4096
_STARTS = (
    (rb"$", "empty, of a save or download that was truncated: do it again"),
    (rb"version https://git-lfs", "a pointer of git-lfs to the file: run `git lfs pull`"),
    (rb"(\xef\xbb\xbf)?\s*<", "a web page or XML, a server's answer: download the file itself"),
    (rb"(\xef\xbb\xbf)?\s*[\[{]\s*[\"{\[\]}\d]", "JSON text: name the file of the weights"),
    (rb"\x08.[\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX model: name the checkpoint it was made of"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|\x28\xb5\x2f\xfd|Rar!", "compressed: unpack it first"),
    (rb"\x89HDF", "an HDF5 file, of another framework"),
    (rb"GGUF", "a GGUF file, of another framework"),
    (rb"\x93NUMPY", "an array of numpy, not a checkpoint"),
)
_MEMBERS = (
    (r"(serialized_exported_program\.json|archive_format)$", "an exported program (.pt2)"),
    (r"(^|/)code/|constants\.pkl$", "a TorchScript archive"),
    (r"\.npy$", "an archive of numpy (.npz)"),
)


def describe_content(path: Path) -> str:
    """What a file is that could not be read as a checkpoint; '' if its content does not show it."""
    with path.open("rb") as file:
        start = file.read(_BYTES)
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # corrupted archives fail in many ways
        matching = (text for pattern, text in _STARTS if re.match(pattern, start, re.DOTALL))
        return next(matching, "")
    for pattern, text in _MEMBERS:
        if any(re.search(pattern, name) for name in names):
            return f"{text}: name the checkpoint it was made of"
    is_checkpoint = any(name.endswith("data.pkl") for name in names)
    return "" if is_checkpoint else "a zip file, but not a checkpoint: unpack it first"
