"""The hash of a model: of its file, and of what it reads from external data."""

from __future__ import annotations

import hashlib

import onnx

from onnxprune.errors import ModelError
from onnxprune.files import payload
from onnxprune.files.external import Folder, is_external, parse
from onnxprune.files.protowalk import Place, tensors
from onnxprune.files.store import Piece, stored

__all__ = ["digests"]

_CHUNK = 1 << 20  # bytes read at a time; mapped pages would count as memory of ours


def digests(pieces: list[Piece], light: bytes, folder: Folder | None) -> tuple[str, str]:
    """Return the sha256 of a model's own bytes, and that of these bytes and its external data.

    Parameters
    ----------
    pieces : list
        The complete model.
    light : bytes
        The light proto, to see what is external.
    folder : Folder or None
        Where external data is.

    Returns
    -------
    tuple of str
        In hexadecimal; both are the same where nothing is external. The data of tensors is taken in the order of the
        proto, each range of a file once.

    Raises
    ------
    ModelError
        If external data can't be read any more.
    """
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(stored(piece))
    alone = digest.hexdigest()
    seen: set[tuple[str, int, int]] = set()
    for place, tensor in tensors(onnx.ModelProto.FromString(light)):
        if is_external(tensor) and folder is not None:
            _add(digest, folder, tensor, place, seen)
    return alone, digest.hexdigest()


def _add(
    digest: hashlib._Hash,
    folder: Folder,
    tensor: onnx.TensorProto,
    place: Place,
    seen: set[tuple[str, int, int]],
) -> None:
    where, left = parse(tensor, place), payload.nbytes(tensor.dims, tensor.data_type)
    real = folder.resolve(where.path, place)
    key = (str(real), where.offset, left)
    if key in seen:
        return
    seen.add(key)
    try:
        with real.open("rb", buffering=0) as file:
            file.seek(where.offset)
            while left:
                chunk = file.read(min(left, _CHUNK))
                if not chunk:
                    raise ModelError(
                        f"The external data of {place} at {str(real)!r} was cut short meanwhile."
                    )
                digest.update(chunk)
                left -= len(chunk)
    except OSError as error:
        raise ModelError(
            f"The external data of {place} at {str(real)!r} can't be read: {error.strerror or error}."
        ) from error
