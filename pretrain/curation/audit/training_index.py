"""Training index of a run: hashes of its training images, in `seen.parquet` of the run folder.

Each row is an image, sorted by content: its SHA-256, its perceptual hash, and a salted hash of its group. The file
holds no names, no order and no pixels. A person who has an image can check whether it is in the file, and so can a
person who guesses the name of a group: give the file only to people who may know this. `dinomed audit RUN TEST.parquet`
uses it.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dinomed.datasets.manifest import Manifest
from dinomed.datasets.tables import read_parquet
from dinomed.errors import DinomedError, MissingInputError, first_line
from dinomed.io.files import replacing
from dinomed.pretrain.curation.audit.hashed_images import HASH_BITS, hash_images
from dinomed.pretrain.run_folder import SEEN_FILE

FORMAT = "dinomed.seen/1"
_GROUP_BYTES = 16
_SCHEMA = pa.schema(
    [
        pa.field("sha256", pa.binary(32), nullable=False),
        pa.field("phash", pa.binary(HASH_BITS // 8)),  # null for an image that could not be read
        pa.field("group", pa.binary(_GROUP_BYTES)),  # null for an image without one
    ]
)


@dataclass(frozen=True)
class TrainingIndex:
    """Hashes of N training images; `sha256` in hexadecimal digits, `hashes` uint64 (N, 4), 0 where not `readable`."""

    sha256: list[str]
    hashes: np.ndarray
    readable: np.ndarray
    groups: list[bytes | None]
    salt: bytes

    def __len__(self) -> int:
        return len(self.sha256)


def write_training_index(folder: str | Path, manifest: Manifest, workers: int | None = None) -> Path:
    """Write `seen.parquet` for the images of a manifest into a folder. Equal manifests give equal bytes.

    Every image is read once (10,000 of 200x150 take about half a minute on one core).
    """
    path = Path(folder) / SEEN_FILE
    images = hash_images(manifest, workers=workers, description="training index")
    salt = hashlib.sha256(manifest.fingerprint.encode()).digest()[:16]
    groups = [None if group is None else hash_group(group, salt) for group in manifest.groups()]
    contents = [bytes.fromhex(digest) for digest in manifest.column("sha256")]
    plain = images.hashes[:, 0].astype(">u8")
    order = sorted(range(len(manifest)), key=lambda i: (contents[i], groups[i] or b""))
    columns = [
        [contents[i] for i in order],
        [plain[i].tobytes() if images.readable[i] else None for i in order],
        [groups[i] for i in order],
    ]
    table = pa.Table.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )
    table = table.replace_schema_metadata({"format": FORMAT, "salt": salt.hex()})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return path


def read_training_index(folder: str | Path) -> TrainingIndex:
    """Read the file that `write_training_index` wrote.

    Raises:
        MissingInputError: the folder has no training index.
        DinomedError: the file is damaged or of another version.
    """
    path = Path(folder) / SEEN_FILE
    if not path.is_file():
        raise MissingInputError(f"{folder} holds no {SEEN_FILE}; give the training manifest instead")
    try:
        table = read_parquet(path, path)
        metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        if metadata.get("format") != FORMAT:
            raise DinomedError(f"{path} does not have the format {FORMAT}; another version wrote it")
        contents, hashes, groups = (table[name].to_pylist() for name in _SCHEMA.names)
        salt = bytes.fromhex(metadata["salt"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DinomedError(f"{path} is damaged or cut off ({first_line(error)})") from None
    words = [np.frombuffer(value or bytes(HASH_BITS // 8), ">u8").astype(np.uint64) for value in hashes]
    return TrainingIndex(
        [digest.hex() for digest in contents],
        np.stack(words) if words else np.empty((0, HASH_BITS // 64), np.uint64),
        np.array([value is not None for value in hashes], bool),
        groups,
        salt,
    )


def hash_group(group: str, salt: bytes) -> bytes:
    """Hash the name of a group with the salt of a run; hashes of two runs cannot be compared."""
    return hashlib.blake2b(group.encode(), digest_size=_GROUP_BYTES, key=salt).digest()
